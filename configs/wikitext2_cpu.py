r"""Trains a small GPT-2 on WikiText-2 for one epoch, on a laptop's CPU.

Command   make preprocess CONFIG=configs/wikitext2_cpu.py INPUT=wiki.train.tokens \
              VALIDATION_INPUT=wiki.valid.tokens
          make train CONFIG=configs/wikitext2_cpu.py
Hardware  2 CPU cores; 40 minutes while other programs use them too
Expected  validation loss 4.73, token perplexity 113, word perplexity 472
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(
            tokenizer="train",
            vocab_size=8192,
            sequence_length=256,
            detokenizer="wikitext",
        ),
        model=schema.ModelConfig(n_layer=4, n_head=4, n_embd=256, n_positions=256),
        optimizer=schema.OptimizerConfig(
            name="adamw", learning_rate=1e-3, beta_2=0.99, weight_decay=0.1
        ),
        training=schema.TrainingConfig(
            global_batch_size=4,
            microbatch_size=4,
            num_epochs=1,
            dropout=0.0,
            precision="float32",
            evaluation_interval=500,
            checkpoint_interval=500,
        ),
        tracking=schema.TrackingConfig(sample_interval=500, sample_prompt="The film"),
    )
