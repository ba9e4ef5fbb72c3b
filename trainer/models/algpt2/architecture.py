"""ALGPT2 as an `Architecture`: a GPT-2 whose layers share the weights of one block.

After ALBERT (Lan et al., 2019, https://arxiv.org/abs/1909.11942): cross-layer parameter
sharing, and a token embedding factorized into [V, E] and [E, C].
"""

from trainer.models.algpt2 import costs, forward, weights
from trainer.models.algpt2.configuration import (
    ALGPT2Config,
    configure,
    load_configuration,
)
from trainer.models.architecture import Architecture
from trainer.models.gpt2.cached import CachedDecoder
from trainer.models.gpt2.costs import activation_values
from trainer.models.gpt2.weights import load_tokenizer

ARCHITECTURE = Architecture(
    name="algpt2",
    configuration_class=ALGPT2Config,
    configure=configure,
    load_configuration=load_configuration,
    build=weights.ALGPT2,
    initialize=weights.initialize,
    load=weights.load,
    resize_vocabulary=weights.resize_vocabulary,
    load_tokenizer=load_tokenizer,
    hidden_states=forward.hidden_states,
    knows_documents=True,
    output_table=forward.output_table,
    step_flops=costs.step_flops,
    activation_values=activation_values,
    as_transformers=weights.as_transformers,
    decoder=CachedDecoder,
    computes_on_cpu=True,
)
