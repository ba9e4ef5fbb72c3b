"""Fine-tunes GPT-2 small (124M parameters) for one epoch with context 1024.

Command   make preprocess CONFIG=configs/gpt2_small.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_small.py TPU=local
Hardware  8 TPU cores: 8 replicas x microbatch 1
Expected  not measured: this has not run on a TPU yet
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(tokenizer="gpt2", sequence_length=1024),
        model=schema.ModelConfig(
            n_layer=12, n_head=12, n_embd=768, initial_checkpoint="gpt2"
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
