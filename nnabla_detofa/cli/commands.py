"""Table of all commands, with their help, arguments, functions and examples."""

from .data import data, data_arguments
from .deploy import detect, detect_arguments, evaluate, evaluate_arguments, export, export_arguments
from .doctor import doctor, doctor_arguments
from .paper import (
    filter_study,
    filter_study_arguments,
    page,
    page_arguments,
    pilot,
    pilot_arguments,
    reproduce,
    reproduce_arguments,
    results,
    results_arguments,
    table1,
    table1_arguments,
)
from .runs import compare, compare_arguments, inspect, inspect_arguments, report, report_arguments
from .search import (
    evaluate_paths,
    evaluate_paths_arguments,
    evaluation_study,
    evaluation_study_arguments,
    measure_latency,
    measure_latency_arguments,
    search,
    search_arguments,
)
from .shared import Command
from .train import finetune, finetune_arguments, import_ofa, import_ofa_arguments, run, run_arguments, ship, ship_arguments

# The functions of commands import what they need, so that `--help` does not import nnabla.


COMMANDS = {
    "run": Command(
        "train and search as a config says",
        run_arguments,
        run,
        (
            "-f configs/digits_detofa.json",
            "-f configs/voc_detofa.json -c cudnn -d 0 dataloader.voc.root=/data/VOCdevkit hparams.r_path=0.5",
            "-f configs/voc_detofa.json --dry-run",
            "-f configs/digits_detofa.json --processes 2",
        ),
    ),
    "report": Command(
        "write the table and the figures of a finished run", report_arguments, report, ("runs/digits_detofa -o results/demo",)
    ),
    "evaluate": Command(
        "average precision of a run's detectors, class by class",
        evaluate_arguments,
        evaluate,
        ("runs/digits_detofa", "runs/digits_detofa --detector subnet_1 --flip --scales 0.75 1 1.25"),
    ),
    "table1": Command("the paper's Table 1: sizes of the search spaces, exactly", table1_arguments, table1, ("",)),
    "reproduce": Command(
        "a table or a figure of the paper, with the runs that it needs",
        reproduce_arguments,
        reproduce,
        ("table3 tableA3 figure8 --profile demo", "figure9 --profile bccd --set dataloader.voc.root=FOLDER --seeds 3"),
    ),
    "filter-study": Command(
        "how well the path filter and other rankings order paths, from how many",
        filter_study_arguments,
        filter_study,
        ("--profile demo",),
    ),
    "results": Command(
        "all results of a profile from the small files of its runs alone",
        results_arguments,
        results,
        ("--profile demo", "claims --profile study --kept"),
    ),
    "pilot": Command(
        "choose the regime of the study by three criteria, on a grid",
        pilot_arguments,
        pilot,
        ("--profile study",),
    ),
    "page": Command(
        "all results of a profile as one HTML page",
        page_arguments,
        page,
        ("--profile demo", "--profile bccd -o bccd.html"),
    ),
    "measure-latency": Command(
        "time the layers of a config's supernet on this device",
        measure_latency_arguments,
        measure_latency,
        ("-f configs/digits_detofa.json -o latency.json", "-f configs/voc_detofa.json -c cudnn -o latency.json"),
    ),
    "search": Command(
        "the best path of a finished run under hard bounds",
        search_arguments,
        search,
        ("runs/digits_detofa --flops 90M --memory 2MB", "runs/voc_detofa --flops 15G --latency 40ms --params 20M --front"),
    ),
    "evaluate-paths": Command(
        "validation losses of many paths of a supernet, in a file",
        evaluate_paths_arguments,
        evaluate_paths,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 20 -o warm_up.jsonl",
            "runs/digits_detofa --pruned --per-bucket 12 --name fresh --exclude warm_up.jsonl --ap -o fresh.jsonl",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 100 -o pretrained.jsonl",
        ),
    ),
    "evaluation-study": Command(
        "how many images the evaluation of paths needs",
        evaluation_study_arguments,
        evaluation_study,
        (
            "runs/digits_detofa --weights warm_up/weights.h5 --per-bucket 8 -o study.md",
            "-f configs/digits_pretrain.json --weights configs/weights/digits_supernet.h5 --per-bucket 12 --pairs 2",
        ),
    ),
    "ship": Command(
        "copy a pre-training's weights in half precision", ship_arguments, ship, ("runs/digits_pretrain configs/weights",)
    ),
    "data": Command(
        "make a data set that needs no download, or check one",
        data_arguments,
        data,
        (
            "digits --root data/digits",
            "digits --root data/digits_1600 --train 1600 --val 256 --test 2000 --no-crops",
            "to-coco --voc data/digits --root data/digits_coco",
            "check --voc data/digits --whole",
            "check -f configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit",
        ),
    ),
    "import-ofa": Command(
        "turn a PyTorch checkpoint of OFA's ResNet50 supernet into a weights file",
        import_ofa_arguments,
        import_ofa,
        ("ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0 -o configs/weights/ofa_resnet50.h5",),
    ),
    "detect": Command(
        "draw what a run's detector finds in photographs",
        detect_arguments,
        detect,
        (
            "runs/digits_detofa data/digits/JPEGImages/test_00000.jpg --detector subnet_2",
            "runs/bccd_detofa photographs/ --detector fullnet --threshold 0.4 -o found",
        ),
    ),
    "inspect": Command(
        "how far a run is, what it cost, pruned and found",
        inspect_arguments,
        inspect,
        ("runs/digits_detofa", "runs/digits_detofa --json"),
    ),
    "compare": Command(
        "the fronts of two or more runs beside each other",
        compare_arguments,
        compare,
        ("runs/digits_detofa runs/digits_ofa -o front.png",),
    ),
    "doctor": Command(
        "what is wrong with this installation, or keeps a config from running",
        doctor_arguments,
        doctor,
        ("", "-f configs/voc_detofa.json dataloader.voc.root=/data/VOCdevkit"),
    ),
    "export": Command(
        "write one detector of a run as NNP or ONNX, and check the file",
        export_arguments,
        export,
        (
            "runs/digits_detofa --detector subnet_2 -o subnet_2.nnp",
            "runs/voc_detofa --detector found.json -o found.onnx",
        ),
    ),
    "finetune": Command(
        "train one detector of a run further, alone",
        finetune_arguments,
        finetune,
        ("runs/digits_detofa --detector subnet_2 --epochs 5 -o runs/subnet_2",),
    ),
}
"""Maps the name of each subcommand to its definition. The first one is the default."""
