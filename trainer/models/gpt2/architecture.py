"""GPT-2 as an `Architecture`."""

from transformers import GPT2Config

from trainer.models.architecture import Architecture
from trainer.models.gpt2 import cached, configuration, costs, forward, weights

ARCHITECTURE = Architecture(
    name="gpt2",
    configuration_class=GPT2Config,
    configure=configuration.configure,
    load_configuration=configuration.load_configuration,
    build=weights.build,
    initialize=weights.initialize,
    load=weights.load,
    resize_vocabulary=weights.resize_vocabulary,
    load_tokenizer=weights.load_tokenizer,
    hidden_states=forward.hidden_states,
    knows_documents=True,
    output_table=forward.output_table,
    step_flops=costs.step_flops,
    activation_values=costs.activation_values,
    as_transformers=weights.as_transformers,
    classifies=True,
    decoder=cached.CachedDecoder,
    computes_on_cpu=True,
)
