"""Table of all commands, with their help, arguments, functions and examples."""

from __future__ import annotations

from collections.abc import Mapping

from . import data, deploy, doctor, init, paper, runs, search, train
from .shared import Command, Group

# The functions of commands import what they need, so that `--help` does not import nnabla.

DATA = Group(
    "make, convert or check a data set",
    {
        "check": Command(
            "count the objects of a data set, and list everything that is wrong with it",
            data.check_arguments,
            data.check,
            (
                "--voc data/digits --whole",
                "configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit",
            ),
            data.after_check,
        ),
        "digits": Command(
            "write the data set digits, handwritten digits on images; needs no download",
            data.digits_arguments,
            data.digits,
            ("", "--root data/digits_1600 --train 1600 --val 256 --test 2000 --no-crops"),
            data.after_digits,
        ),
        "to-coco": Command(
            "copy a VOC tree in COCO's format",
            data.to_coco_arguments,
            data.to_coco,
            ("--voc data/digits --root data/digits_coco",),
            data.after_to_coco,
        ),
    },
)

PAPER = Group(
    "make the paper's tables and figures, with the runs that they need",
    {
        "reproduce": Command(
            "make tables and figures, with the runs that they need",
            paper.reproduce_arguments,
            paper.reproduce,
            ("table3 tableA3 figure8 --profile demo", "figure9 --profile bccd --set dataloader.voc.root=FOLDER --seeds 3"),
            paper.after_reproduce,
        ),
        "table1": Command(
            "make Table 1, the sizes of the search spaces, with exact counts",
            paper.table1_arguments,
            paper.table1,
            ("",),
            paper.after_table1,
        ),
        "results": Command(
            "make all results of a profile from the archived files of its runs",
            paper.results_arguments,
            paper.results,
            ("--profile demo", "claims --profile study --kept"),
            paper.after_results,
        ),
        "page": Command(
            "write all results of a profile as one HTML page",
            paper.page_arguments,
            paper.page,
            ("--profile demo", "--profile bccd -o bccd.html"),
            paper.after_page,
        ),
        "pilot": Command(
            "choose the regime of the study on a grid, by three criteria",
            paper.pilot_arguments,
            paper.pilot,
            ("--profile study",),
            paper.after_pilot,
        ),
        "filter-study": Command(
            "measure how many paths the path filter needs, compared with other rankings",
            paper.filter_study_arguments,
            paper.filter_study,
            ("--profile demo", "--profile demo --choose"),
            paper.after_reproduce,
        ),
    },
    "reproduce",
    (
        "A target is table1, table2, table3, tableA1 to tableA3, figure3 to figure10, figureA1, figureA2, controls,",
        "architectures, or tables, figures or all.",
    ),
)

COMMANDS: Mapping[str, Command | Group] = {
    "doctor": Command(
        "check the installation, or what a config needs to run",
        doctor.doctor_arguments,
        doctor.doctor,
        ("", "configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit"),
        doctor.after_doctor,
    ),
    "init": Command(
        "look at your data set and write a config for it",
        init.init_arguments,
        init.init,
        ("--voc data/digits -o digits.yaml",),
        init.after_init,
    ),
    "data": DATA,
    "train": Command(
        "train and search with a config; resumes a stopped run",
        train.run_arguments,
        train.run,
        (
            "configs/digits_detofa.json",
            "configs/voc_detofa.json -c cudnn -d 0 dataloader.voc.root=/data/VOCdevkit hparams.r_path=0.5",
            "configs/voc_detofa.json --dry-run",
            "configs/digits_detofa.json --processes 2",
        ),
        train.after_run,
    ),
    "finetune": Command(
        "continue the training of a single detector of a run",
        train.finetune_arguments,
        train.finetune,
        ("runs/digits_detofa --detector subnet_2 --epochs 5 -o runs/subnet_2",),
        train.after_finetune,
    ),
    "inspect": Command(
        "show a run's progress, cost, pruned operations, and detectors",
        runs.inspect_arguments,
        runs.inspect,
        ("runs/digits_detofa", "runs/digits_detofa --json"),
        runs.after_inspect,
    ),
    "report": Command(
        "write the table and the figures of a finished run",
        runs.report_arguments,
        runs.report,
        ("runs/digits_detofa",),
        runs.after_report,
    ),
    "compare": Command(
        "compare the Pareto fronts of two or more runs",
        runs.compare_arguments,
        runs.compare,
        ("runs/digits_detofa runs/digits_ofa -o front.png",),
        runs.after_compare,
    ),
    "evaluate": Command(
        "compute the average precision of a run's detectors, class by class",
        deploy.evaluate_arguments,
        deploy.evaluate,
        ("runs/digits_detofa", "runs/digits_detofa --detector subnet_1 --flip --scales 0.75 1 1.25"),
        deploy.after_evaluate,
    ),
    "detect": Command(
        "draw the detections of a run's detector in images",
        deploy.detect_arguments,
        deploy.detect,
        (
            "runs/digits_detofa data/digits/JPEGImages/test_00000.jpg --detector subnet_2",
            "runs/bccd_detofa images/ --detector fullnet --threshold 0.4 -o found",
        ),
        deploy.after_detect,
    ),
    "search": Command(
        "find the best subnet of a finished run under hard bounds",
        search.search_arguments,
        search.search,
        ("runs/digits_detofa --flops 90M --memory 2MB", "runs/voc_detofa --flops 15G --latency 40ms --params 20M --front"),
        search.after_search,
    ),
    "export": Command(
        "write one detector of a run as NNP or ONNX, and verify the file",
        deploy.export_arguments,
        deploy.export,
        (
            "runs/digits_detofa --detector subnet_2 -o subnet_2.nnp",
            "runs/voc_detofa --detector found_flops_15G.json -o found.onnx",
        ),
        deploy.after_export,
    ),
    "measure-latency": Command(
        "time the layers of a config's supernet on this device",
        search.measure_latency_arguments,
        search.measure_latency,
        ("configs/digits_detofa.json --classes 10 -o latency.json", "configs/voc_detofa.json -c cudnn -o latency.json"),
        search.after_measure_latency,
    ),
    "evaluate-paths": Command(
        "measure the validation losses of many paths of a supernet",
        search.evaluate_paths_arguments,
        search.evaluate_paths,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 20 -o warm_up.jsonl",
            "runs/digits_detofa --pruned --per-bucket 12 --name fresh --exclude warm_up.jsonl --ap -o fresh.jsonl",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 100 -o pretrained.jsonl",
        ),
        search.after_evaluate_paths,
    ),
    "image-count-study": Command(
        "measure how many images the evaluation of paths needs",
        search.image_count_study_arguments,
        search.image_count_study,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 8 -o study.md",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 12 --pairs 2",
        ),
        search.after_image_count_study,
    ),
    "import-ofa": Command(
        "convert OFA's PyTorch checkpoint of ResNet50 to a weights file",
        train.import_ofa_arguments,
        train.import_ofa,
        ("ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0 -o configs/weights/ofa_resnet50.h5",),
        train.after_import_ofa,
    ),
    "export-weights": Command(
        "copy the weights of a pre-training in half precision",
        train.export_weights_arguments,
        train.export_weights,
        ("runs/digits_pretrain configs/weights",),
        train.after_export_weights,
    ),
    "paper": PAPER,
}
"""Commands and groups of commands by name."""

SECTIONS = {
    "your data": ("init", "data", "doctor"),
    "train": ("train", "finetune", "inspect", "report", "compare"),
    "use a run": ("evaluate", "detect", "search", "export"),
    "measure and reproduce": (
        "paper",
        "measure-latency",
        "evaluate-paths",
        "image-count-study",
        "import-ofa",
        "export-weights",
    ),
}
"""Headings of `--help`, and their commands."""

OTHER_NAMES = {
    "run": ("train",),
    "val": ("evaluate",),
    "predict": ("detect",),
    "ship": ("export-weights",),
    "evaluation-study": ("image-count-study",),
    **{name: ("paper", name) for name in PAPER.commands},
}
"""Another name of a command -> its place in `COMMANDS`."""

DEFAULT = "train"
"""Command of a command line that starts with an option."""
