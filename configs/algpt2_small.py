r"""Pretrains ALGPT2 at GPT-2 small's shape (14.4M parameters) from random weights.

All layers share the weights of one block, and the token embedding has 128 columns. It
takes a ninth of GPT-2 small's memory for weights, and about as long.

Command   make preprocess CONFIG=configs/algpt2_small.py INPUT='openwebtext/*' \
              DATA=gs://BUCKET/openwebtext
          make train CONFIG=configs/algpt2_small.py TPU=local \
              DATA=gs://BUCKET/openwebtext WORKDIR=gs://BUCKET/run
Hardware  v3-8: 8 replicas x microbatch 64
Expected  not measured here; its author reports perplexity 31 on OpenWebText
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(tokenizer="gpt2", num_shards=64),
        model=schema.ModelConfig(architecture="algpt2"),
        optimizer=schema.OptimizerConfig(
            name="adafactor", learning_rate=1e-4, warmup_steps=10_000
        ),
        training=schema.TrainingConfig(
            global_batch_size=512,
            microbatch_size=64,
            remat="block",
            num_steps=100_000,
            evaluation_interval=5_000,
            checkpoint_interval=1_000,
            steps_per_execution=100,
        ),
    )
