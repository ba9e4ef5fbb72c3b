"""Fine-tunes GPT-2 large (774M parameters) on a corpus: one epoch, context 1024.

Command   make preprocess CONFIG=configs/gpt2_large.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_large.py TPU=local
Hardware  8 TPU cores: 8 replicas x microbatch 1
"""

from configs import schema


def get_config() -> schema.Config:
    return schema.Config(
        data=schema.DataConfig(tokenizer="gpt2-large", sequence_length=1024),
        model=schema.ModelConfig(
            n_layer=36, n_head=20, n_embd=1280, initial_checkpoint="gpt2-large"
        ),
        optimizer=schema.OptimizerConfig(
            name="adafactor", learning_rate=5e-5, schedule="linear", warmup_fraction=0.1
        ),
        training=schema.TrainingConfig(
            global_batch_size=8,
            microbatch_size=1,
            num_epochs=1,
            evaluation_interval=500,
            checkpoint_interval=500,
        ),
    )
