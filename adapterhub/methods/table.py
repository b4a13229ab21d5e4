"""The methods: every type of peft 0.21.2, one that it renamed, and those that it lacks."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.errors import NotSupported
from adapterhub.methods.row import PEFT_ITSELF, Method

_ARXIV = "https://arxiv.org/abs/"

_PEFT = (
    Method("lora", "LORA", "LoRA", _ARXIV + "2106.09685", ("merge", "attach"), "lora"),
    Method("adalora", "ADALORA", "AdaLoRA", _ARXIV + "2303.10512", ("merge",), "adalora"),
    Method("adamss", "ADAMSS", "AdaMSS", None, ("merge",), PEFT_ITSELF),
    Method("adaption_prompt", "ADAPTION_PROMPT", "LLaMA-Adapter", _ARXIV + "2303.16199"),
    Method("beft", "BEFT", "BEFT (biases)", _ARXIV + "2509.15974", ("merge",), "beft"),
    Method("boft", "BOFT", "Butterfly OFT", _ARXIV + "2311.06243", ("merge",), "boft"),
    Method("c3a", "C3A", "Circular convolution", _ARXIV + "2407.19342", ("merge",), "c3a"),
    Method("cartridge", "CARTRIDGE", "Cartridge", _ARXIV + "2506.06266"),
    Method("cpt", "CPT", "Context-aware prompts", _ARXIV + "2410.17222"),
    Method(
        "deft",
        "DEFT",
        "DEFT (decompositional)",
        "https://proceedings.neurips.cc/paper_files/paper/2025/hash/"
        "93a34a7138bdad95e874018d5f491cc6-Abstract-Conference.html",
        ("merge",),
        PEFT_ITSELF,
    ),
    Method("delora", "DELORA", "DeLoRA", _ARXIV + "2503.18225", ("merge",), "delora"),
    Method("fourierft", "FOURIERFT", "FourierFT", _ARXIV + "2405.03003", ("merge",), "fourierft"),
    Method(
        "frod", "FROD", "FRoD", "https://doi.org/10.1609/aaai.v40i31.39813", ("merge",), PEFT_ITSELF
    ),
    Method("glora", "GLORA", "Generalised LoRA", _ARXIV + "2306.07967", ("merge",), PEFT_ITSELF),
    Method("gralora", "GRALORA", "GraLoRA", _ARXIV + "2505.20355", ("merge",), "gralora"),
    Method(
        "hira", "HIRA", "HiRA", "https://openreview.net/forum?id=TwJrTz9cRS", ("merge",), "hira"
    ),
    Method("hra", "HRA", "Householder reflections", _ARXIV + "2405.17484", ("merge",), "hra"),
    Method("ia3", "IA3", "(IA)³", _ARXIV + "2205.05638", ("merge",), "ia3"),
    Method("lily", "LILY", "Lily", _ARXIV + "2407.09946"),
    Method(
        "ln_tuning",
        "LN_TUNING",
        "Layer-norm tuning",
        _ARXIV + "2312.11420",
        ("merge",),
        "ln_tuning",
    ),
    Method("loha", "LOHA", "LoHa (FedPara)", _ARXIV + "2108.06098", ("merge",), "loha"),
    Method("lokr", "LOKR", "LoKr", _ARXIV + "2309.14859", ("merge",), "lokr"),
    Method("miss", "MISS", "MiSS", _ARXIV + "2409.15371", ("merge",), "miss"),
    Method(
        "multitask_prompt_tuning",
        "MULTITASK_PROMPT_TUNING",
        "Multitask prompt tuning",
        _ARXIV + "2303.02861",
        ("attach",),
    ),
    Method("oft", "OFT", "Orthogonal fine-tuning", _ARXIV + "2306.07280", ("merge",), "oft"),
    Method("osf", "OSF", "Orthogonal subspaces", _ARXIV + "2504.07097", ("merge",), PEFT_ITSELF),
    Method("p_tuning", "P_TUNING", "P-tuning", _ARXIV + "2103.10385", ("attach",)),
    Method("peanut", "PEANUT", "PEANuT", _ARXIV + "2410.01870", ("merge",), PEFT_ITSELF),
    Method("poly", "POLY", "Polytropon", _ARXIV + "2202.13914"),
    Method("prefix_tuning", "PREFIX_TUNING", "Prefix tuning", _ARXIV + "2101.00190", ("attach",)),
    Method("prompt_tuning", "PROMPT_TUNING", "Prompt tuning", _ARXIV + "2104.08691", ("attach",)),
    Method(
        "psoft",
        "PSOFT",
        "PSOFT",
        "https://openreview.net/forum?id=FSHrinMArK",
        ("merge",),
        PEFT_ITSELF,
    ),
    Method("pvera", "PVERA", "PVeRA", _ARXIV + "2512.07703", ("merge",), "pvera"),
    Method("randlora", "RANDLORA", "RandLoRA", _ARXIV + "2502.00987", ("merge",), "randlora"),
    Method("road", "ROAD", "RoAd", _ARXIV + "2409.00119", ("merge",), "road"),
    Method("shadow", "SHADOW", "ShadowPEFT", _ARXIV + "2604.19254"),
    Method("shira", "SHIRA", "SHiRA", _ARXIV + "2406.13175", ("merge",), "shira"),
    Method(
        "supertuning",
        "SUPERTUNING",
        "Super-Tuning",
        _ARXIV + "2607.09287",
        ("merge",),
        "supertuning",
    ),
    Method("tinylora", "TINYLORA", "TinyLoRA", _ARXIV + "2602.04118", ("merge",), "tinylora"),
    Method(
        "trainable_tokens",
        "TRAINABLE_TOKENS",
        "Trainable tokens",
        None,
        ("merge",),
        "trainable_tokens",
    ),
    Method("unilora", "UNILORA", "Uni-LoRA", _ARXIV + "2506.00799", ("merge",), "unilora"),
    Method("vblora", "VBLORA", "VB-LoRA", _ARXIV + "2405.15179", ("merge",), "vblora"),
    Method("vera", "VERA", "VeRA", _ARXIV + "2310.11454", ("merge",), "vera"),
    Method("waveft", "WAVEFT", "WaveFT", _ARXIV + "2505.12532", ("merge",), PEFT_ITSELF),
    Method("xlora", "XLORA", "X-LoRA", _ARXIV + "2402.07148"),
)

_RENAMED = (
    Method(
        "bone",
        "BONE",
        "Bone (now MiSS)",
        _ARXIV + "2409.15371",
        ("merge",),
        "miss",
        schema="methods/miss",
        successor="miss",
    ),
)

_WITHOUT_PEFT = (
    Method("adamix", None, "AdaMix", _ARXIV + "2205.12410", ("attach",), "adamix"),
    Method("bitfit", None, "BitFit", _ARXIV + "2106.10199", ("merge", "attach"), "bitfit"),
    Method("bottleneck", None, "Bottleneck adapters", _ARXIV + "1902.00751", ("attach",)),
    Method("compacter", None, "Compacter", _ARXIV + "2106.04647", ("attach",)),
    Method(
        "diff_pruning",
        None,
        "Diff pruning",
        _ARXIV + "2012.07463",
        ("merge", "attach"),
        "sparse_delta",
    ),
    Method(
        "fishmask", None, "FISH mask", _ARXIV + "2111.09839", ("merge", "attach"), "sparse_delta"
    ),
    Method(
        "intrinsic_said",
        None,
        "Intrinsic dimension",
        _ARXIV + "2012.13255",
        ("merge", "attach"),
        "intrinsic_said",
    ),
    Method("krona", None, "KronA", _ARXIV + "2212.10650", ("merge", "attach"), "krona"),
    Method(
        "ladder_side",
        None,
        "Ladder side-tuning",
        _ARXIV + "2206.06522",
        ("attach",),
        "ladder_side",
    ),
    Method("mam", None, "Mix-and-match adapters", _ARXIV + "2110.04366", ("attach",)),
    Method("reft", None, "ReFT", _ARXIV + "2404.03592"),
    Method("sparse_adapter", None, "SparseAdapter", _ARXIV + "2210.04284", ("attach",)),
    Method("unipelt", None, "UniPELT", _ARXIV + "2110.07577", ("attach",)),
)

TABLE: Mapping[str, Method] = {row.name: row for row in (*_PEFT, *_RENAMED, *_WITHOUT_PEFT)}
_BY_PEFT_TYPE = {row.peft_type: row for row in TABLE.values() if row.peft_type}


def method(name: str) -> Method:
    """The row of a method. Raises NotSupported, with the methods that there are."""
    if name not in TABLE:
        raise NotSupported(
            f"method {name!r} is not supported by this version",
            remedy=f"supported methods: {', '.join(sorted(TABLE))}",
        )
    return TABLE[name]


def method_of(peft_type: str) -> Method | None:
    """The row of what peft calls `peft_type`, in whatever case; None if there is none."""
    return _BY_PEFT_TYPE.get(peft_type.upper())
