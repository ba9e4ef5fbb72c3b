"""Trains a small XLNet on Chinese text from scratch, with a tokenizer of its own.

Command   make preprocess CONFIG=configs/chinese_xlnet.py INPUT=novel.jsonl
          make train CONFIG=configs/chinese_xlnet.py
Hardware  2 CPU cores; 40 minutes while other programs used most of them
Expected  on a novel of 1.8 MB: validation loss 5.47 nats per target,
          where the tokens' frequencies alone give 6.82; a sample reads like the novel
"""

from configs import chinese_gpt2, schema

PADDING = (
    "話說天下大勢，分久必合，合久必分。周末七國分爭，併入於秦。及秦滅之後，楚、漢分爭，"
    "又併入於漢。漢朝自高祖斬白蛇而起義，一統天下。後來光武中興，傳至獻帝，遂分為三國。"
)


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = chinese_gpt2.get_config()
    config.model.architecture, config.model.n_layer = "xlnet", 2
    config.training.task = "permutation_lm"
    config.training.global_batch_size = config.training.microbatch_size = 16
    config.training.num_steps = 1500
    config.training.dropout = 0.0  # the targets of a record differ each time
    config.tracking.sample_padding_text = PADDING
    return config
