r"""Fine-tunes DistilGPT2 (82M parameters) with its authors' recipe for WikiText-2.

Command   make preprocess CONFIG=configs/distilgpt2.py INPUT=wiki.train.tokens \
              VALIDATION_INPUT=wiki.valid.tokens
          make train CONFIG=configs/distilgpt2.py TPU=local
Hardware  v3-8: 8 replicas x microbatch 4
Cost      30 to 32 s of steps: 424 of 71 to 75 ms
Expected  not measured: this has not run on a TPU yet
Trap      wiki.*.tokens hold <unk>: their perplexity does not compare with that of the
          raw text (docs/evaluation.md)
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(tokenizer="distilgpt2", detokenizer="wikitext"),
        model=schema.ModelConfig(n_layer=6, initial_checkpoint="distilgpt2"),
        optimizer=schema.OptimizerConfig(
            name="adamw",
            learning_rate=2e-5,
            weight_decay=0.01,
            warmup_fraction=0.0,
        ),
        training=schema.TrainingConfig(
            global_batch_size=32,
            microbatch_size=4,
            num_epochs=6,
            evaluation_interval=100,
            checkpoint_interval=100,
        ),
    )
