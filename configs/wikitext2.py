r"""Fine-tunes GPT-2 small on WikiText-2 for one epoch, as others have published it.

Command   make preprocess CONFIG=configs/wikitext2.py INPUT=wiki.train.raw \
              VALIDATION_INPUT=wiki.valid.raw
          make train CONFIG=configs/wikitext2.py TPU=local
Hardware  v3-8: 8 replicas x microbatch 1
Cost      13 s of steps: 283 of 44 to 47 ms
Expected  others report a validation loss of 2.87 (bkkaggle); not measured here
Trap      GPT-2 never saw " @-@ " and " , ": the text is detokenized, and word
          perplexity still counts the original's words
"""

from configs import gpt2_small, schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = gpt2_small.get_config()
    config.data.detokenizer = "wikitext"
    config.training.evaluation_interval = config.training.checkpoint_interval = 50
    config.hardware.tpu_type = "v3-8"
    return config
