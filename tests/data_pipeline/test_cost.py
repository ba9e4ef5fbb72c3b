"""Cost grows with the input, and not faster: operations are counted, not seconds."""

import dataclasses
import pickle

from configs.schema import Config, DataConfig
from data_pipeline import pipeline
from data_pipeline.job import plan_job
from data_pipeline.records import shards
from data_pipeline.sources.input_files import InputFile
from data_pipeline.tokens import token_files
from tests.data_pipeline.runs import SETTINGS, in_process, run


class CountingFile(InputFile):
    """Counts how often a field is read."""

    num_reads = 0

    def __getattribute__(self, name):
        CountingFile.num_reads += 1
        return super().__getattribute__(name)


def test_the_cost_of_a_file_does_not_depend_on_the_number_of_files(tmp_path):
    """Counts operations, in planning and in the whole run: a square would show."""
    reads = {}
    for count in (40, 160):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number:03d}.txt").write_text(f"number {number} " * 25)
        data = DataConfig(input=str(folder), **SETTINGS | {"sequence_length": 16})
        job = plan_job(Config(data=data))
        files = [CountingFile(**vars(file)) for file in job.train_files]
        CountingFile.num_reads = 0
        job = dataclasses.replace(job, train_files=files)
        pipeline.preprocess(job, str(folder / "out"), in_process)
        reads[count] = CountingFile.num_reads
    assert reads[40] > 40
    assert reads[160] < 4.2 * reads[40]


def test_work_items_do_not_grow_with_the_number_of_chunks(tmp_path):
    """A shard's item, which travels to a worker, does not list all token files."""
    sizes = {}
    for count in (2, 60):
        text = "".join(f"document {number}\n" for number in range(count * 100))
        (tmp_path / "a.txt").write_text(text)

        def measuring(function, items, count=count):
            sizes[count, function] = max(len(pickle.dumps(item)) for item in items)
            return in_process(function, items)

        run(
            tmp_path / "a.txt",
            tmp_path / str(count),
            runner=measuring,
            document="line",
            min_chunk_bytes=len(text) // count,
            sequence_length=64 * count,
            num_shards=1,
        )
    for function in (token_files.tokenize, shards.write):
        assert sizes[60, function] < 1.1 * sizes[2, function]
