r"""Pretrains GPT-2 small (124M parameters) on 5 B tokens of FineWeb, by Muon and WSD.

It was not trained: this is the schedule that we would run. A step has 524,288 tokens.
The rate stays until 80 % of them; it is not tuned.

Command   make preprocess CONFIG=configs/gpt2_small_fineweb.py \
              DATA=gs://BUCKET/fineweb
          make train CONFIG=configs/gpt2_small_fineweb.py TPU=local \
              DATA=gs://BUCKET/fineweb WORKDIR=gs://BUCKET/run
Hardware  v3-8: 8 replicas x microbatch 16 x 4 accumulation steps
Cost      4.1 to 4.4 hours of steps: 9,500 of 1.57 to 1.67 s
Expected  not measured; llm.c's GPT-2 of this size reaches a loss of 3.28 in 10 B
          tokens by AdamW
Trap      small batches: with 8 records on 8 replicas, two thirds of all products would
          be Muon's, which orthogonalizes a matrix as a whole on each replica
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(
            input="hf:HuggingFaceFW/fineweb:sample-10BT/train",
            tokenizer="gpt2",
            validation_fraction=0.001,
        ),
        optimizer=schema.OptimizerConfig(
            name="muon",
            learning_rate=1e-3,
            schedule="wsd",
            warmup_steps=250,
            beta_2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        training=schema.TrainingConfig(
            global_batch_size=512,
            microbatch_size=16,
            num_steps=9_500,
            dropout=0.0,
            evaluation_interval=500,
            checkpoint_interval=500,
        ),
    )
