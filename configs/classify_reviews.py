r"""Classifies sentences of film reviews as good or bad, on a laptop's CPU.

Trap      no end token: the state at the text's own last token decides
Command   make preprocess CONFIG=configs/classify_reviews.py INPUT=reviews.jsonl
          make train CONFIG=configs/classify_reviews.py
          make evaluate CONFIG=configs/classify_reviews.py
Hardware  2 CPU cores; 5 minutes
Expected  accuracy 0.739 on held-out sentences, from random weights; a bag of words has
          0.747. A pretrained `model.initial_checkpoint` was not tried
"""

from configs import schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    return schema.Config(
        data=schema.DataConfig(
            mode="labelled",
            tokenizer="train",
            vocab_size=8192,
            sequence_length=64,
            end_token="",
        ),
        model=schema.ModelConfig(n_layer=2, n_head=4, n_embd=128, n_positions=64),
        optimizer=schema.OptimizerConfig(
            name="adamw", learning_rate=5e-4, weight_decay=0.1
        ),
        training=schema.TrainingConfig(
            task="classification",
            global_batch_size=32,
            microbatch_size=32,
            num_epochs=4,
            dropout=0.6,
            precision="float32",
            evaluation_interval=100,
            checkpoint_interval=100,
        ),
    )
