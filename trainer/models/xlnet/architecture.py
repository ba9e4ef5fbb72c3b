"""XLNet as an `Architecture`: two streams, which predict tokens in any order."""

from trainer.models.architecture import Architecture
from trainer.models.gpt2.weights import load_tokenizer
from trainer.models.xlnet import configuration, costs, forward, weights

ARCHITECTURE = Architecture(
    name="xlnet",
    configuration_class=configuration.LimitedXLNetConfig,
    configure=configuration.configure,
    load_configuration=configuration.load_configuration,
    build=weights.XLNet,
    initialize=weights.initialize,
    load=weights.load,
    resize_vocabulary=weights.resize_vocabulary,
    load_tokenizer=load_tokenizer,
    hidden_states=forward.hidden_states,
    output_table=forward.output_table,
    step_flops=costs.step_flops,
    activation_values=costs.activation_values,
    as_transformers=weights.as_transformers,
    target_states=forward.target_states,
    task="permutation_lm",
)
