"""Trains a tiny GPT-2 on Python's built-in documentation, on a laptop, in minutes.

Command   make quickstart
Hardware  2 CPU cores, as 2 devices; 3 to 6 minutes
Expected  validation perplexity falls from 4,184 to about 114

Batches are small because in this time more steps lower the loss further than larger
batches. Precision is float32, which is fast on every CPU.
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(
            input="builtin:python_docs",
            tokenizer="train",
            vocab_size=4096,
            sequence_length=128,
        ),
        model=schema.ModelConfig(n_layer=2, n_head=2, n_embd=160, n_positions=128),
        optimizer=schema.OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            warmup_fraction=0.15,
            beta_2=0.99,
            weight_decay=0.1,
        ),
        training=schema.TrainingConfig(
            global_batch_size=4,  # 2 devices x 2 accumulation steps x microbatch 1
            microbatch_size=1,
            num_steps=2000,
            dropout=0.0,
            precision="float32",
            evaluation_interval=400,
            checkpoint_interval=400,
            steps_per_execution=20,
        ),
        tracking=schema.TrackingConfig(sample_interval=400),
    )
