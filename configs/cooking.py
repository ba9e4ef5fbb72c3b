r"""Trains a small GPT-2 on recipes from scratch, each a record of at most 180 tokens.

Command   make preprocess CONFIG=configs/cooking.py INPUT=recipes.jsonl
          make train CONFIG=configs/cooking.py
Hardware  v5e-1: 1 replica x microbatch 32; or 2 CPU cores
Cost      350 recipes: 250 steps of 3 to 5 ms on a v5e-1; 220 took 15 minutes on the
          cores, which other programs used too
Expected  of these: validation loss 3.86 at step 150, 3.90 at 200; samples have the form
          of a recipe, in broken English
Trap      a recipe that is cut has no end token, and the manifest counts them: 301 of
          317 here. Give long ones a longer `data.sequence_length`
"""

from configs import schema, wikitext2_cpu


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = wikitext2_cpu.get_config()
    config.data = schema.DataConfig(tokenizer="train", vocab_size=4096, mode="document")
    config.data.sequence_length = 180
    config.data.start_token, config.data.end_token = "<|recipe|>", "<|end|>"
    config.data.validation_fraction = 0.1
    config.training.global_batch_size = config.training.microbatch_size = 32
    config.training.num_epochs = 40
    config.training.evaluation_interval = config.training.checkpoint_interval = 50
    config.training.early_stopping_patience = 2
    config.tracking.sample_interval = 50
    config.tracking.sample_prompt = "beef, salt, pepper"
    return config
