"""Estimates: their formulas against the slow count of what they stand for, and what the command says."""

import json
import re
from dataclasses import replace
from functools import cache
from itertools import count, islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import fused
from rollout.decoder import Block, Decoder, DecoderConfig, causal_attention
from rollout.shapes import QWEN3, shape_named_in
from tests.tiny_runs import SMALL
from trainer import plan_memory, plan_time
from trainer.distributed import World
from trainer.main import main, read_arguments
from trainer.plan_job import GIB, GPUS, Job, Tree
from trainer.replica import JudgeReplica
from trainer.token_tree import Leaf, TokenTree

RECIPES = Path(__file__).resolve().parents[2] / "trainer" / "recipes"
PAPER = sorted(RECIPES.glob("qwen3*.toml"))
GRPO = str(RECIPES / "qwen3_8b_grpo_point.toml")


RLHF = str(RECIPES / "quickstart_rlhf.toml")
OF_8B = [
    RLHF, 'stages=["rlhf"]', "model.path=Qwen3-8B", "model.dtype=bfloat16", "model.activation_checkpointing=true",
    "rlhf.reward.model=Qwen3-4B", "rlhf.reward.dtype=bfloat16", "rlhf.reward.max_completion_tokens=800",
    "rlhf.reward.votes=2", "rollout.max_completion_tokens=600", "rollout.kv_gib=8", "rlhf.prompts_per_step=128",
    "rlhf.tokens_per_micro_batch=8192", "model.reduce_each_micro_batch=true", "num_processes=16",
]  # fmt: skip


def job(*overrides: str, stage: str = "grpo", num_gpus: int = 16, shape: str = "Qwen3-8B", **lengths: int) -> Job:
    return Job(
        recipe=read_arguments([GRPO, *overrides]), stage=stage, shape=QWEN3[shape], gpu=GPUS["A100"],
        num_gpus=num_gpus, **({"prompt": 600, "response": 450, "judgment": 1000} | lengths), mfu=0.4, bandwidth=0.6,
    )  # fmt: skip


@pytest.mark.parametrize("file", PAPER, ids=lambda file: file.stem)
def test_a_recipe_of_the_paper_fits_and_its_first_line_says_what_is_computed(file, capsys):
    header = re.search(r"(\d+) x A100 80 GB, (\d+) GiB on each \(--plan\)", file.read_text().splitlines()[0])
    assert main(["--plan", str(file)]) == 0
    told = re.findall(r"^fits: (\d+) GiB on each of (\d+) x A100 80 GB", capsys.readouterr().out, re.M)
    assert told == [(header[2], header[1])]


@pytest.mark.parametrize(("name", "billions"), [("Qwen3-1.7B", 1.72), ("Qwen3-4B", 4.02), ("Qwen3-8B", 8.19)])
def test_parameters_are_those_of_the_blocks_and_of_what_is_around_them(name, billions):
    it = job(shape=name)
    with torch.device("meta"):
        decoder = Decoder(replace(QWEN3[name], num_hidden_layers=1))
    assert it.block == sum(p.numel() for p in decoder.layers[0].parameters())
    assert it.head == decoder.head.weight.numel()
    around = sum(p.numel() for p in decoder.parameters()) - it.block
    assert around + it.shape.num_hidden_layers * it.block == it.N
    assert round(it.N / 1e9, 2) == billions


def saved_bytes_per_token(config: DecoderConfig, num_tokens: int) -> float:
    """What autograd keeps of one block in bfloat16, its weights, angles and input aside, compiled as on a GPU."""
    block = Block(config, 0).to(torch.bfloat16)
    x_BTD = torch.randn(1, num_tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    cos_BTC, sin_BTC = torch.randn(2, 1, num_tokens, config.head_dim)
    known = {t.untyped_storage().data_ptr() for t in (*block.parameters(), x_BTD, cos_BTC, sin_BTC)}
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        block(x_BTD, cos_BTC, sin_BTC, causal_attention)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for place, size in storages.items() if place not in known) / num_tokens


@pytest.mark.parametrize("sizes", [(256, 512, 8, 2, 32), (256, 1024, 4, 4, 64), (384, 512, 6, 3, 64)])
def test_activations_of_a_block_are_what_autograd_keeps(sizes, monkeypatch):
    @cache
    def compiled(definition):  # by torch's own partition of forward and backward, without its code generator
        return torch.compile(definition, fullgraph=True, backend="aot_eager_decomp_partition")

    monkeypatch.setattr(fused, "_plain", lambda definition, *tensors: compiled(definition))
    monkeypatch.setattr(fused, "_norm_rotary_cpu", lambda *arguments: compiled(fused.norm_rotary_ref)(*arguments))
    D, F, H, K, C = sizes
    config = DecoderConfig(
        vocab_size=64, hidden_size=D, intermediate_size=F, num_hidden_layers=1, num_attention_heads=H,
        num_key_value_heads=K, head_dim=C,
    )  # fmt: skip
    estimate = plan_memory.block_activations_per_token(replace(job(), shape=config))
    assert estimate == pytest.approx(saved_bytes_per_token(config, 64), rel=0.05)


def laid_out(tree: Tree, is_shared: bool) -> TokenTree:
    """Tokens of which no two are alike but those that are shared. A leaf's last token is no input."""
    fresh = count()
    trunk, leaves = list(islice(fresh, tree.trunk)), []
    for _ in range(tree.num_branches):
        context = trunk + list(islice(fresh, tree.branch))
        leaves += [Leaf(context, list(islice(fresh, tree.leaf + 1))) for _ in range(tree.per_branch)]
    return TokenTree.of(leaves, is_shared)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(8, 60), st.integers(8, 60), st.integers(8, 60), st.integers(2, 9), st.integers(180, 1200),
    st.sampled_from(["tree", "flat"]),
)  # fmt: skip
def test_tokens_and_attention_are_those_of_the_layout(prompt, response, judgment, n, most, layout):
    it = job(
        f"rollout.num_rollouts={n}", f"model.layout={layout}", f"grpo.tokens_per_micro_batch={most}",
        "grpo.pairs_per_step=3", num_gpus=1, prompt=prompt, response=response, judgment=judgment,
    )  # fmt: skip
    tree = laid_out(it.tree, layout == "tree")
    assert it.tokens == 3 * sum(part.num_tokens for part in tree.split(most))
    assert it.visible == pytest.approx(3 * tree.num_attention_pairs, rel=0.07)  # x²/2 for x (x + 1) / 2


def test_a_choice_reads_both_responses_in_one_context():
    it, sft = job("mode=pairwise", "grpo.pairs_per_step=16"), job("mode=pairwise", "sft.rows_per_step=16", stage="sft")
    assert (it.tree.context, it.tree.num_leaves) == (600 + 2 * 450, 8)
    assert (it.tokens, it.loss_tokens) == (1500 + 8 * 1000, 8 * 1000)
    assert (sft.tokens, sft.loss_tokens) == (1500 + 1000, 1000)
    assert job("mode=pairwise", "bt.pairs_per_step=16", stage="bt").tree == job(stage="bt").tree  # judges nothing


def test_inner_epochs_are_updates():
    once, twice = (plan_time.seconds(job(f"grpo.inner_epochs={n}")) for n in (1, 2))
    assert twice["rollout"] == once["rollout"]
    assert twice["2 updates"] == {quantity: 2 * s for quantity, s in once["update"].items()}


def test_a_pair_is_what_each_stage_makes_of_it():
    overrides = ["stages=['bt']", "bt.pairs_per_step=16", "dpo.pairs_per_step=16", "sft.rows_per_step=16"]
    tokens = {
        stage: (it.tokens, it.loss_tokens) for stage in ("sft", "bt", "dpo") if (it := job(*overrides, stage=stage))
    }
    assert tokens == {"sft": (2050, 1000), "bt": (1500, 2), "dpo": (1500, 900)}


def policy(*overrides: str, stage: str = "rlhf", reward: DecoderConfig | None = QWEN3["Qwen3-4B"]) -> Job:
    return Job(
        recipe=read_arguments([*OF_8B, *overrides]), stage=stage, shape=QWEN3["Qwen3-8B"], gpu=GPUS["A100"],
        num_gpus=16, prompt=250, response=450, judgment=700, mfu=0.4, bandwidth=0.6, reward=reward,
    )  # fmt: skip


def test_a_policy_and_the_judge_that_scores_it_by_hand():
    it, N_judge = policy(), QWEN3["Qwen3-4B"].num_parameters
    assert (it.tokens, it.loss_tokens) == (8 * (250 + 8 * 450), 8 * 8 * 450)
    assert it.scoring.loss_tokens == 2 * 8 * 8 * 700
    blocks = 2 * 36 * it.scoring.block * 8 * (250 + 350 + 8 * 450)  # an answer is read once for both of its votes
    assert plan_time.reading_of_answers(it) == pytest.approx(blocks / (312e12 * 0.4))
    assert laid_out(it.scoring.tree, True).num_tokens == 250 + 350 + 8 * 450 + 16 * 700
    assert plan_memory.reward_model(it) == 2 * N_judge
    assert plan_memory.keys_and_values_of_the_judge(it) == 4 << 30
    assert plan_memory.keys_and_values_of_the_judge(policy("rlhf.reward.kv_gib=9")) == 9 << 30
    assert list(plan_time.seconds(it)) == ["rollout", "scoring", "update"]
    assert sum(map(sum, (phase.values() for phase in plan_time.seconds(it).values()))) == plan_time.step_s(it)


def test_a_scalar_model_reads_each_answer_whole_and_writes_nothing():
    it = policy(reward=replace(QWEN3["Qwen3-4B"], is_scalar=True))
    blocks = 2 * 36 * it.scoring.block * 8 * 8 * (250 + 450)
    assert plan_time.reading_of_answers(it) == pytest.approx(blocks / (312e12 * 0.4))
    assert plan_time.writing_of_judgments(it) == plan_memory.keys_and_values_of_the_judge(it) == 0
    assert plan_memory.reward_model(it) == 2 * (QWEN3["Qwen3-4B"].num_parameters + 2560)  # its embedding is no head


def test_what_is_scored_elsewhere_takes_nothing_here():
    it = policy(reward=None)
    assert plan_memory.reward_model(it) == plan_memory.work_of_scoring(it) == 0
    assert list(plan_time.seconds(it)) == ["rollout", "update"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], 'scored by rlhf.reward.kind = "judge": Qwen3-4B, N = 4,022,468,096, 2 x J 800 tokens for each answer'),
        (["rlhf.reward.kind=scalar"], 'scored by rlhf.reward.kind = "scalar": Qwen3-4B, N = 4,022,470,656'),
        (["rlhf.reward.kind=checker"], 'scored by rlhf.reward.kind = "checker", which is not counted'),
        (["rlhf.reward.kind=endpoint"], 'scored by rlhf.reward.kind = "endpoint", which is not counted'),
    ],
)
def test_policies_are_planned_with_what_scores_them(changes, told, capsys):
    assert main(["--plan", *OF_8B, *changes]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert told in lines and "128 prompts a step, n = 8, P 250 + R 450 tokens" in lines
    # A phase of memory and one of time.
    assert sum(line.startswith("scoring ") for line in lines) == (0 if told.endswith("counted") else 2)
    assert "n    this estimate, s    Table 8 (16 A100s), s    5 + 30 n" not in lines


def test_the_other_stages_of_a_policy(capsys):
    stages = ['stages=["sft", "dpo"]', "model.path=Qwen3-4B", "--gpus", "8"]
    assert main(["--plan", *OF_8B, *stages]) == 0
    out = capsys.readouterr().out
    assert "rows a step, P 250 + R 450 tokens" in out and "64 pairs a step, P 250 + R 450 tokens" in out
    assert "scored by" not in out
    assert main(["--plan", *OF_8B, *stages, "dpo.preferences=reward"]) == 0
    assert "once before the first step, which is not counted" in capsys.readouterr().out


def test_prompts_that_no_judge_reads_are_not_shortened_for_its_instructions(capsys):
    of_small = [f"trainer/recipes/quickstart{name}.toml" for name in ("", "_bt")]
    assert main(["--plan", *of_small, "model.path="]) == 0
    assert "16 pairs a step, P 91 + R 164 tokens" in capsys.readouterr().out  # of 256 positions, as 250 to 450


def test_bytes_of_8b_by_hand():
    it, N = job(), 8_190_735_360
    assert plan_memory.master_weights(it) == N / 4
    assert plan_memory.moments_of_adamw(it) == N / 2
    assert plan_memory.rollout_replica(it) == 2 * N
    assert plan_memory.gradients(it) == N / 4
    assert plan_memory.gradients(job("model.reduce_each_micro_batch=false")) == 4 * N
    assert plan_memory.master_weights(job("model.shard_size=8")) == N / 2
    assert plan_memory.kv_bytes_per_token(it) == 147_456
    assert plan_memory.moments_of_adamw(job("grpo.optim.cpu_offload=true")) < N / 20
    assert plan_memory.host_bytes(job("grpo.optim.cpu_offload=true")) == N / 2
    assert plan_memory.reference_model(job("grpo.kl_coef=0")) == 0
    assert plan_memory.gathered_weights(it) < N / 2  # 2 bytes of head, embedding and two of 36 blocks
    assert plan_memory.gathered_weights(job(num_gpus=1)) == 2 * N


def test_seconds_grow_with_rollouts_and_shrink_with_gpus():
    seconds = [plan_time.step_s(job(f"rollout.num_rollouts={n}")) for n in (4, 8, 16)]
    assert seconds == sorted(seconds)
    assert seconds[2] < 4 * seconds[0]
    assert plan_time.step_s(job(num_gpus=32)) < plan_time.step_s(job()) < plan_time.step_s(job(num_gpus=8))
    frugal, plain = job(), job("model.activation_checkpointing=false")
    blocks = plan_time.block_flops(plain) / (312e12 * 0.4)
    assert plan_time.forward_and_backward(frugal) - plan_time.forward_and_backward(plain) == pytest.approx(blocks)


def test_copies_of_shards_reduce_within_a_node_and_sum_across():
    spread, nodes = job(), job("model.shard_size=8")
    assert plan_time.sum_over_copies(spread) == 0
    # Half of what an all-reduce moves twice, 4 bytes of an eighth of the gradients, at 25 GB/s x 0.7.
    assert plan_time.sum_over_copies(nodes) == pytest.approx(2 * 4 * nodes.N / 8 / 2 / (25e9 * 0.7))


def test_the_report_stands_beside_the_paper(capsys):
    assert main(["--plan", GRPO, "rollout.num_rollouts=2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if len(line) == 4 and line[0].isdigit()]
    assert [(n, paper, line) for n, _, paper, line in rows] == [
        ("2", "-", "65"), ("4", "125", "125"), ("8", "246", "245"), ("16", "486", "485")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        ["model.activation_checkpointing=false"],
        ["model.reduce_each_micro_batch=false", "grpo.tokens_per_micro_batch=32768"],
        ["rollout.kv_gib=60"],
        ["--gpus", "4"],
        ["grpo.tokens_per_micro_batch=262144"],
    ],
)
def test_what_does_not_fit_is_told_with_what_helps_and_that_is_true(changes, capsys):
    assert main(["--plan", GRPO, *changes]) == 3
    told = re.search(r"^does not fit: .*", capsys.readouterr().out, re.M)[0]
    advice = re.search(r"it would fit with (\S+) ", told)[1]
    assert main(["--plan", GRPO, *changes, *(["--gpus", "8"] if advice.isdigit() else [advice])]) == 0


@pytest.mark.parametrize("changes", [[], ["model.shard_size=8"], ["grpo.kl_coef=0"]])
def test_keys_and_values_of_no_stated_size_leave_room_for_training(changes, monkeypatch):
    it = job(*changes, "rollout.kv_gib=0")
    # What is there when the first judgment is drawn: weights and replica.
    there = (plan_memory.master_weights, plan_memory.rollout_replica, plan_memory.context_and_libraries)
    free = it.gpu.memory_gib * GIB - sum(quantity(it) for quantity in there)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(it.gpu.memory_gib * GIB)))
    replica = JudgeReplica(it.recipe, it.shape, None, World(0, 16, torch.device("cuda", 3), None))
    assert replica._kv_gib_left() * GIB == pytest.approx(plan_memory.keys_and_values(it), rel=1e-6)
    assert main(["--plan", GRPO, *changes, "rollout.kv_gib=0"]) == 0


def test_several_stages_are_planned_one_by_one(capsys):
    assert main(["--plan", str(RECIPES / "own_data.toml"), "model.path=Qwen3-1.7B", "--gpus", "8"]) == 3
    out = capsys.readouterr().out
    assert re.findall(r"^(sft|grpo) of Qwen3-1.7B", out, re.M) == ["sft", "grpo"]
    assert main(["--plan", str(RECIPES / "quickstart.toml")]) == 0


def test_neither_a_gpu_nor_weights_are_touched(tmp_path, monkeypatch):
    def touched(*_):
        raise AssertionError("touched")

    for name in ("_lazy_init", "is_available", "device_count"):
        monkeypatch.setattr(f"torch.cuda.{name}", touched)
    monkeypatch.setattr("rollout.weights.load_weights_", touched)
    (tmp_path / "config.json").write_text(json.dumps(DecoderConfig(**SMALL).to_hf()))
    assert main(["--plan", str(RECIPES / "quickstart.toml"), f"model.path={tmp_path}"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--plan: no recipe given"),
        ([GRPO, "--gpus", "0"], "argument --gpus: '0' is not a whole number of at least 1"),
        ([GRPO, "--gpus", "1e3"], "argument --gpus: '1e3' is not a whole number of at least 1"),
        ([GRPO, "--mfu", "nan"], "argument --mfu: 'nan' is not a share in (0, 1]"),
        ([GRPO, "--bandwidth", "60%"], "argument --bandwidth: '60%' is not a share in (0, 1]"),
        ([GRPO, "--gpu", "V100"], "argument --gpu: invalid choice: 'V100' (choose from"),
        ([GRPO, "--gpuz", "3"], "unrecognized arguments: --gpuz"),
        ([GRPO, "grpo.step=3"], "command line: unknown key 'grpo.step'; the nearest is 'grpo.steps'"),
        ([GRPO, "model.path=nowhere"], "model.path: nowhere is not there and names none of Qwen3-1.7B, Qwen3-4B, "),
        ([GRPO, "model.shard_size=3"], "model.shard_size=3 does not divide 16 GPUs"),
        (
            [GRPO, "--prompt-tokens=7000", "--response-tokens=450", "grpo.tokens_per_micro_batch=9999", "model.path="],
            "a context of 7450 tokens and 1000 that follow do not fit the model's max_position_embeddings=1024",
        ),
        ([GRPO, "--judgment-tokens", "5000"], "--judgment-tokens 5000 is a mean above rollout.max_completion_tokens"),
        (
            [GRPO, "mode=pairwise", "--prompt-tokens", "7000", "--response-tokens", "800"],
            "--prompt-tokens 7000 and twice --response-tokens 800 make more than prompt.max_context_tokens=8192",
        ),
        ([GRPO, "--prompt-tokens", "9000"], "--prompt-tokens 9000 and --response-tokens 450 make more than prompt"),
        ([GRPO, "grpo.tokens_per_micro_batch=2000"], "a context of 1050 tokens and 1000 that follow do not fit "),
        (["nowhere.toml"], "nowhere.toml: no such file"),
        ([RLHF, "rlhf.reward.model=nowhere"], "rlhf.reward.model: nowhere is not there and names none of Qwen3-1.7B, "),
        ([*OF_8B, "--response-tokens", "700"], "--response-tokens 700 is a mean above rollout.max_completion_tokens"),
        ([*OF_8B, "--judgment-tokens", "900"], "--judgment-tokens 900 is a mean above rlhf.reward.max_completion"),
        (
            [*OF_8B, "--prompt-tokens", "39500", "rlhf.tokens_per_micro_batch=50000"],
            "a context of 40300 tokens and 800 that follow do not fit the max_position_embeddings of rlhf.reward.model",
        ),
    ],
)  # fmt: skip
def test_nonsense_is_told_in_one_line(arguments, line, capsys):
    assert main(["--plan", *arguments]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {line}") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("runs/qwen3_14b_sft_point/models/sft", "Qwen3-14B"),
        ("qwen3-1.7b", "Qwen3-1.7B"),
        ("runs/qwen3_8b_sft/qwen3_4b", "Qwen3-4B"),
        ("Qwen3-32B", None),
        ("models/judge", None),
    ],
)
def test_a_path_names_its_model(path, name):
    assert (shape_named_in(path) or (None,))[0] == name
