r"""Adapts DistilGPT2 to a corpus of less than a megabyte, such as one author's texts.

Command   make preprocess CONFIG=configs/tiny_corpus.py INPUT=texts/
          make train CONFIG=configs/tiny_corpus.py TPU=local
Hardware  v5e-1: 1 replica x microbatch 8
Cost      10 s of steps for 1 MB: 1,220 of 7 to 8 ms; 0.9 GB of a replica
Expected  not measured: this has not run on a TPU yet
Trap      a model learns so little text by heart. LoRA trains 0.1 % of the weights,
          training stops at the lowest validation loss, and `train` warns of overfitting
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = schema.Config()
    config.data.tokenizer = config.model.initial_checkpoint = "distilgpt2"
    config.data.sequence_length = 256
    config.model.n_layer = 6
    config.model.lora.rank = 4
    config.optimizer = schema.OptimizerConfig(name="adamw", learning_rate=2e-4)
    config.training.microbatch_size, config.training.num_epochs = 8, 10
    config.training.evaluation_interval = config.training.checkpoint_interval = 50
    config.training.early_stopping_patience = 3
    return config
