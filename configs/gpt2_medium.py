"""Fine-tunes GPT-2 medium (355M parameters) as `gpt2_small` does the small one.

Command   make preprocess CONFIG=configs/gpt2_medium.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_medium.py TPU=local
Hardware  8 TPU cores: 8 replicas x microbatch 1; not run there yet
"""

from configs import gpt2_small, schema


def get_config() -> schema.Config:
    config = gpt2_small.get_config()
    config.data.tokenizer = "gpt2-medium"
    config.model = schema.ModelConfig(
        n_layer=24, n_head=16, n_embd=1024, initial_checkpoint="gpt2-medium"
    )
    return config
