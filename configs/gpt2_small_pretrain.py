r"""Pretrains GPT-2 small (124M parameters) from random weights on a large corpus.

Command   make preprocess CONFIG=configs/gpt2_small_pretrain.py INPUT='openwebtext/*' \
              DATA=gs://BUCKET/openwebtext
          make train CONFIG=configs/gpt2_small_pretrain.py TPU=NAME \
              DATA=gs://BUCKET/openwebtext WORKDIR=gs://BUCKET/run
Hardware  v3-128: 128 replicas x microbatch 4
Cost      3.2 to 3.5 hours of steps: 100,000 of 117 to 124 ms
Expected  not measured here; others report perplexity 21 on OpenWebText with this
          schedule, after 10 to 20 hours
Trap      too few shards leave hosts without files: 256 are 16 for each of 16 hosts
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        # Each of the 16 hosts of a v3-128 reads 16 shards.
        data=schema.DataConfig(tokenizer="gpt2", num_shards=256),
        model=schema.ModelConfig(n_layer=12, n_head=12, n_embd=768, n_positions=1024),
        optimizer=schema.OptimizerConfig(
            name="adafactor", learning_rate=1e-4, warmup_steps=10_000
        ),
        training=schema.TrainingConfig(
            global_batch_size=512,
            microbatch_size=4,
            num_steps=100_000,
            evaluation_interval=5_000,
            checkpoint_interval=1_000,
            steps_per_execution=100,
        ),
    )
