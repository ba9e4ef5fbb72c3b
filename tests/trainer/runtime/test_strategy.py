"""What XLA compiles on which hardware."""

from types import SimpleNamespace

from trainer.runtime import strategy as strategies


def on(*devices):
    extended = SimpleNamespace(worker_devices=devices)
    return SimpleNamespace(num_replicas_in_sync=len(devices), extended=extended)


def test_gpus_compile_gradients_and_update():
    gpus = on("/job:localhost/device:GPU:0", "/job:localhost/device:GPU:1")
    assert strategies.compiles_update(gpus)
    assert strategies.compiles_local_work(gpus, "bfloat16")
    assert strategies.compiles_local_work(gpus, "float32")


def test_a_cpu_compiles_gradients_of_float32_only():
    cpu = strategies.mirror_cpu(1)
    assert not strategies.compiles_update(cpu)
    assert not strategies.compiles_local_work(cpu, "bfloat16")
    assert strategies.compiles_local_work(cpu, "float32")


def test_a_cpu_has_its_own_layout():
    cpu, gpu = strategies.mirror_cpu(1), on("/job:localhost/device:GPU:0")
    assert strategies.is_cpu(cpu)
    assert not strategies.is_cpu(gpu)
