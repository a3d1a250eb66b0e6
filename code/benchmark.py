"""Measure size and speed at paper size beside transformers, and write the record.

    python code/benchmark.py --recipe quick --stage size_speed
    python code/benchmark.py --recipe study --stage training_speed

size_speed          the paper's Table 3: parameters, bytes, and a pass over the STS-B dev pairs on
                    the CPU at batch size 1, BERT-base against DistilBERT-base
shape_speed         fewer layers against less width, at one number of parameters
inference_speed     our DistilBERT against transformers' by length, and over STS-B dev in batches
training_speed      our fine-tuning against transformers' Trainer on SST-2
distillation_speed  our distillation step against the textbook's, BERT-base to DistilBERT-base
corpus_speed        our corpus preparation against a slow tokenizer called once a line
question_answering_speed  our answers to SQuAD questions against the loop of transformers' examples
latency             teacher and student by backend, length, batch and threads, at both sizes

All stages but size_speed and inference_speed run only if the recipe has a key of that name. All
run on the CPU. Models of paper size have random weights: time does not depend on their values.
"""

import os
from importlib import import_module

os.environ["ACCELERATE_USE_CPU"] = "true"  # where the training loop asks

from distilbert_kit.script import argument_parser, entry_point

import torch

from distilbert_kit.study.cell import BENCHMARK_STAGES
from distilbert_kit.study.cells import benchmark_cell, benchmark_stages
from distilbert_kit.study.inputs import open_recipe
from distilbert_kit.study.records import recording


@entry_point
def main() -> None:
    parser = argument_parser(__doc__, recipe="quick")
    parser.add_argument("--stage", choices=BENCHMARK_STAGES, help="default: all of the recipe's")
    arguments = parser.parse_args()
    recipe = open_recipe(arguments.recipe)
    for stage in [arguments.stage] if arguments.stage else benchmark_stages(recipe):
        cell = benchmark_cell(recipe, stage)
        measure = import_module(f"benchmarks.{stage}").measure
        torch.manual_seed(0)
        with recording(cell.record, **cell.provenance) as draft:
            summary = measure(recipe, draft)
        print(f"{cell.name}: {summary}; {cell.record}")


if __name__ == "__main__":
    main()
