"""Fine-tunes GPT-2 large (774M parameters) with the recipe of `gpt2_small`.

Command   make preprocess CONFIG=configs/gpt2_large.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_large.py TPU=local
Hardware  8 TPU cores: 8 replicas x microbatch 1
Expected  not measured: this has not run on a TPU yet
"""

from configs import gpt2_small, schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = gpt2_small.get_config()
    config.data.tokenizer = "gpt2-large"
    config.model = schema.ModelConfig(
        n_layer=36, n_head=20, n_embd=1280, initial_checkpoint="gpt2-large"
    )
    config.training.remat = "block"
    return config
