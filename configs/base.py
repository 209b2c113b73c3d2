"""Every key, once. Other files in this folder change some of them; the command line changes any of them.

Command: `jaxalign VERB [files and runs] --config=NAME_OR_FILE --config.key=value ...`
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the study's hyper-parameters (Zhang et al. 2024, arXiv 2405.13816), the mini question set."""
    config = ConfigDict()

    # What every verb shares.
    config.model = ""  # a Hugging Face folder, a GGUF file, ORG/NAME[@REVISION] on the hub, or `packaged` (demo extra)
    config.adapter = ""  # a PEFT folder or a training run; none if empty
    config.resume = ""  # train: a run whose newest checkpoint a new one starts from, optimizer and step with it
    config.dtype = "float32"  # compute type: float32, bfloat16, or float16 (the study's evaluation)
    config.param_dtype = "auto"  # how base weights are stored: as in the checkpoint, as those, int8, or nf4
    config.data = "mini"  # a folder holding ap_emotion/, snli/, paws/; or the shipped mini set
    config.exemplars = ""  # few-shot exemplars: a file, or mini; DATA/exemplars.json if empty
    config.tasks = "emotion"  # emotion, snli, paws; comma-separated, or all
    config.languages = "all"  # codes or names, comma-separated, or all
    config.rows = "all"  # START:STOP, or all: of test files; of each train file or file of pairs
    config.out = ""  # the folder that results go to; that of a training run may be gs://BUCKET/FOLDER
    config.seed = 42  # of the adapter, the split, the order of batches, and ties
    config.mesh = ConfigDict()
    config.mesh.data = 1  # devices along this axis: copies of the weights
    config.mesh.fsdp = -1  # weights and batch are split; -1 takes the devices that are left
    config.mesh.tensor = 1  # heads and feed-forward units are split

    # data build, and bare texts in train: which translation examples.
    config.build = ConfigDict()
    config.build.sources = "zh,de"  # languages to translate from; also taken from a data set of many languages
    config.build.target = "en"  # the language to translate into
    config.build.instruction = "after"  # where the instruction stands: after the text (the study), or before (QAlign)
    config.build.control = "none"  # none, mispaired, copy, answers; the last two read English alone

    # train: pairs to batches.
    config.template = "auto"  # chat template: auto, none, default, mistral, qwen, alpaca
    config.heldout = 0.05  # share of the pairs kept aside to measure the loss on
    config.epochs = 3  # passes over the pairs
    config.steps = 0  # length of the run in optimizer steps; 0: by epochs
    config.batch = ConfigDict()
    config.batch.pairs_per_step = 16  # exactly so many pairs a step; or 0, and rows_per_step instead
    config.batch.rows_per_step = 0  # packed rows of `length` positions, as many pairs as fit
    config.batch.length = 2048  # positions a pair (or a row) takes at most
    config.batch.too_long = "drop"  # what happens to a longer pair: drop or cut
    config.batch.packed = True  # several pairs share a row; False: one pair a row
    config.batch.accumulation = 1  # micro-batches that a step is divided into; saves memory
    config.batch.rows_at_once = 0  # rows each device computes at a time, empty ones passed over; 0: all. On a CPU: 1

    # train: what is tuned, and how.
    config.tune = "adapter"  # what is tuned: adapter, or all parameters
    config.lora = ConfigDict()
    config.lora.rank = 8
    config.lora.alpha = 16.0  # the update is scaled by alpha / rank
    config.lora.targets = "q_proj,v_proj"  # also k_proj, o_proj, gate_proj, up_proj, down_proj
    config.lora.rslora = False  # rank-stabilised: scaled by alpha / sqrt(rank) instead
    config.lora.dora = False  # weight-decomposed: a magnitude per output is tuned too
    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-5  # at the end of the warm-up
    config.optimizer.warmup_fraction = 0.1  # of the steps; then a cosine down to 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9  # Adam's decay of the first moment
    config.optimizer.b2 = 0.999  # and of the second
    config.optimizer.eps = 1e-8
    config.optimizer.clip_norm = 1.0  # gradients are scaled down to this global norm
    config.loss = ConfigDict()
    config.loss.reduction = "token_mean"  # or micro_batch_mean, the study's mean of micro-batch means
    config.loss.chunk = 96  # target positions whose logits a device holds at once
    config.remat = "none"  # what is recomputed in the backward pass: none, dots, full

    # train: several runs in one.
    config.stages = ()  # {key: value} of each stage; a stage starts from what the last has tuned

    # train: the run.
    config.log_every = 10  # steps between rows of metrics.jsonl
    config.log = ConfigDict()
    config.log.tensorboard = False  # the rows also as TensorBoard's event files, in OUT/tensorboard
    config.log.wandb = ""  # the W&B project that the rows also go to (offline: WANDB_MODE=offline); none if empty
    config.heldout_every = 50  # steps between measurements of the held-out loss
    config.checkpoint_every = 50  # steps between checkpoints
    config.keep_last = 2  # newest checkpoints that are kept
    config.keep_best = 0  # checkpoints of least held-out loss that are kept beside them
    config.nonfinite = "stop"  # a loss or gradient that is not finite: stop the run, or skip that update

    # train: what is watched on a few test rows of `data` meanwhile, beside the loss in metrics.jsonl.
    # accuracy, open_answers (of `tasks`), logit_lens, attribution, pca, geometry, neurons; comma-separated
    config.watch = ""
    config.watch_every = 50  # steps between looks
    config.watch_rows = "0:20"  # START:STOP of each test file
    config.watch_languages = "all"  # codes or names, comma-separated, or all

    # evaluate.
    config.variants = "english"  # which words answer: english, in_language, irrelevant (emotion only), or all
    config.prompts = "study"  # few-shot texts with the study's slips; or mended
    config.batch_tokens = 1024  # positions computed at once; more on an accelerator
    config.pairs = (
        ""  # translation: files, comma-separated, or a run for its held-out pairs; the adapter's run if empty
    )
    config.generate = ConfigDict()
    config.generate.batch_size = 32  # open answers decoded at once
    config.generate.max_tokens = 0  # tokens an answer takes at most; 0: mgsm 600, msvamp 300, translation 256

    # probe.
    config.probes = "logit_lens,pca"  # or attribution, geometry, neurons, masking, masked_accuracy, transplant
    config.attribution_positions = 1  # last positions of each prompt that attribution reads, each on its own
    config.batch_size = 8  # prompts that run at once
    config.capture = ConfigDict()  # which hidden states geometry compares
    config.capture.layers = "all"  # numbers, 0 (embeddings) to the number of blocks, comma-separated; or all
    config.capture.position = "query_mean"  # last, prompt_mean, query_mean, or a number (-2: the last but one)

    # neurons, and the probe masking.
    config.neurons = ConfigDict()
    config.neurons.score = "code"  # the follow-up's score as in its code, as in its paper, or of lape (no lambda)
    config.neurons.top_rate = 0.01  # share of all neurons that is selected
    config.neurons.selection = ""  # masking, transplant: the selection.npz whose neurons are meant
    config.neurons.masked = "related"  # the same: specific; related, of several languages too; general, of all too

    # plan.
    config.topology = ""  # TPU slices, comma-separated: v5e:4x4, v5p:2x2x1, ...
    config.fit = False  # search batch, length, mesh and remat for the most positions/s that fit
    config.plan = ConfigDict()
    config.plan.programs = "train"  # what is compiled: train, score, lens; comma-separated

    # export. verify takes config.model as a PEFT folder's base, and config.adapter as the run that it came from.
    config.format = "peft"  # the adapter as a PEFT folder; or merged, the whole model (config.model) as Hugging Face's
    return config
