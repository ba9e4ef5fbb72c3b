"""Fine-tunes GPT-2 xl by LoRA: 2.5 M trained parameters beside 1,558 M frozen ones.

Rank 8 on the attention's queries, keys and values. Optimizer, learning rate, scale and
dropout are those of LoRA's paper for GPT-2 (Hu et al., 2021, table 11).

Command   make preprocess CONFIG=configs/gpt2_xl_lora.py INPUT='corpus/*.txt'
          make train CONFIG=configs/gpt2_xl_lora.py TPU=local
Hardware  v5e-1: 1 replica x microbatch 1 x 8 accumulation steps; 7.4 of 16.9 GB
Expected  not measured: this has not run on a TPU yet
"""

from configs import gpt2_xl, schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = gpt2_xl.get_config()
    config.model.lora = schema.LoraConfig(rank=8)
    config.optimizer = schema.OptimizerConfig(
        name="adamw", learning_rate=2e-4, weight_decay=0.01
    )
    return config
