"""Trains a small GPT-2 on Chinese text from scratch, with a tokenizer of its own.

Command   make preprocess CONFIG=configs/chinese_gpt2.py INPUT=novel.jsonl
          make train CONFIG=configs/chinese_gpt2.py
Hardware  v5e-1: 1 replica x microbatch 8; or 2 CPU cores, 22 minutes while other
          programs used most of them
Cost      1 s of steps on a v5e-1: 1,000 of 0.4 to 0.6 ms
Expected  on a novel of 1.8 MB: validation loss 5.75 nats per token, where the tokens'
          frequencies alone give 6.82; a sample joins names and phrases of the novel
Trap      GPT-2's tokenizer makes 2.2 tokens of a Chinese character: text of
          another language needs a tokenizer of its own
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(tokenizer="train", vocab_size=4096, sequence_length=128),
        model=schema.ModelConfig(n_layer=3, n_head=4, n_embd=128, n_positions=256),
        optimizer=schema.OptimizerConfig(
            name="adamw", learning_rate=2e-3, beta_2=0.99, weight_decay=0.1
        ),
        training=schema.TrainingConfig(
            global_batch_size=8,
            microbatch_size=8,
            num_steps=1000,
            precision="float32",
            evaluation_interval=250,
            checkpoint_interval=250,
        ),
        tracking=schema.TrackingConfig(sample_interval=250, sample_prompt="卻說曹操"),
    )
