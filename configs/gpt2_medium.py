"""Fine-tunes GPT-2 medium (355M parameters) with the recipe of `gpt2_small`.

Command   make preprocess CONFIG=configs/gpt2_medium.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_medium.py TPU=local
Hardware  8 TPU cores: 8 replicas x microbatch 1
Expected  not measured: this has not run on a TPU yet
"""

from configs import gpt2_small, schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = gpt2_small.get_config()
    config.data.tokenizer = "gpt2-medium"
    config.model = schema.ModelConfig(
        n_layer=24, n_head=16, n_embd=1024, initial_checkpoint="gpt2-medium"
    )
    return config
