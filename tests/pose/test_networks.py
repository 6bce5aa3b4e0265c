"""DDHPose's network: counts, hierarchical attention, mirror symmetry and the published faults.

Numbers are those of the method's card: its derived weights of the published chain order, its counts
of parameters, and its count of keys that HRTT reads at the right place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from structdiff.errors import StructDiffError
from structdiff.pose import inference
from structdiff.pose.blocks import (
    DropPath,
    HierarchyUpdate,
    HopBias,
    TemporalAttention,
    child_mean,
    hierarchy_update,
)
from structdiff.pose.networks import HSTDenoiser
from structdiff.pose.skeletons import COCO_17, H36M_17, MPI_INF_3DHP_17, Skeleton

SKELETONS = [H36M_17, MPI_INF_3DHP_17]
KINDS = [
    {},
    {"spatial": "hop-bias"},
    {"spatial": "plain", "temporal": "plain"},
    {"temporal": "plain", "depth": 1},
]


def network(skeleton: Skeleton = H36M_17, frames: int = 5, **settings) -> HSTDenoiser:
    """A small one in evaluation mode, with random weights and side-symmetric embeddings."""
    torch.manual_seed(0)
    made = HSTDenoiser(skeleton, frames, **{"width": 16, "heads": 2, "depth": 3, **settings})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        joints = made.joint_embedding
        joints.copy_((joints + joints[list(skeleton.mirrored)]) / 2)
    return made.eval()


def inputs(frames: int = 5, batch: int = 2, size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, frames, 17, size, generator=generator)
    return features, torch.linspace(999, 20, batch)


def parameters(**settings) -> int:
    with torch.device("meta"):
        made = HSTDenoiser(**settings)
    return sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize(
    ("frames", "count"), [(27, 38_405_635), (81, 38_433_283), (243, 38_516_227)]
)
def test_the_reference_layout_has_the_published_number_of_parameters(frames, count):
    assert parameters(frames=frames, layout="reference") == count


@pytest.mark.parametrize("frames", [27, 81, 243])
def test_the_corrected_layout_lacks_exactly_the_seven_unused_linears(frames):
    published = parameters(frames=frames, layout="reference")
    assert published - parameters(frames=frames) == 1_838_592


def test_d3dp_has_the_number_of_parameters_of_its_published_network():
    assert parameters(frames=243, layout="d3dp", inputs=5) == 34_835_459


# --- HRST -----------------------------------------------------------------------------------------
def weights(skeleton: Skeleton, entry: tuple[int, int], *, in_place: bool) -> dict:
    """What an updated logit is made of."""
    joints = len(skeleton)
    row = hierarchy_update(skeleton, in_place=in_place)[entry[0] * joints + entry[1]]
    return {divmod(int(at), joints): float(row[at]) for at in np.flatnonzero(row)}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ((8, 11), {(0, 7): 0.375, (7, 8): 0.125, (8, 11): 0.5}),
        ((8, 14), {(0, 7): 0.4375, (7, 8): 0.0625, (8, 14): 0.5}),
        ((7, 8), {(0, 7): 0.875, (7, 8): 0.125}),
    ],
)
def test_the_published_chain_order_weighs_logits_as_derived(entry, expected):
    assert weights(H36M_17, entry, in_place=True) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ((8, 11), {(7, 8): 0.5, (8, 11): 0.5}),
        ((11, 8), {(7, 8): 0.5, (11, 8): 0.5}),
        ((8, 14), {(7, 8): 0.5, (8, 14): 0.5}),
        ((7, 8), {(0, 7): 0.5, (7, 8): 0.5}),
        ((0, 7), {(0, 7): 1.0}),
        ((3, 16), {(3, 16): 1.0}),
    ],
)
def test_the_corrected_update_takes_each_triple_once_from_the_original_logits(entry, expected):
    assert weights(H36M_17, entry, in_place=False) == expected


@pytest.mark.parametrize(
    ("skeleton", "chains"),
    [
        (
            H36M_17,
            "0 1 2 3, 0 4 5 6, 0 7 8 9 10, 0 7 8 11 12 13, 0 7 8 14 15 16",
        ),
        (
            MPI_INF_3DHP_17,
            "14 8 9 10, 14 11 12 13, 14 15 1 0, 14 15 1 2 3 4, 14 15 1 5 6 7, 14 15 1 16",
        ),
    ],
    ids=["h36m", "3dhp"],
)
def test_the_reference_update_is_the_published_loop_over_chains(skeleton, chains):
    """Card section 3: the chains in this order, each step in place."""
    logits = torch.randn(2, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    for chain in ([int(joint) for joint in text.split()] for text in chains.split(",")):
        for g, p, c in zip(chain, chain[1:], chain[2:], strict=False):
            expected[..., p, c] = (expected[..., p, c] + expected[..., g, p]) / 2
            expected[..., c, p] = (expected[..., c, p] + expected[..., g, p]) / 2
    updated = HierarchyUpdate(skeleton, in_place=True)(logits)
    torch.testing.assert_close(updated, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda s: s.name)
@pytest.mark.parametrize("in_place", [False, True])
def test_only_the_corrected_update_commutes_with_exchanging_the_sides(skeleton, in_place):
    logits = torch.randn(17, 17, generator=torch.Generator().manual_seed(0))
    order = list(skeleton.mirrored)
    update = HierarchyUpdate(skeleton, in_place=in_place)
    difference = update(logits[order][:, order]) - update(logits)[order][:, order]
    if in_place:
        assert difference.abs().max() > 0.01
    else:
        assert difference.abs().max() < 1e-6


# --- HRTT -----------------------------------------------------------------------------------------
def test_child_features_of_3dhp_average_a_joint_and_its_children():
    """Card section 3: children 14 -> 8, 11, 15; 15 -> 1; 1 -> 0, 2, 5, 16."""
    means = child_mean(MPI_INF_3DHP_17)
    rows = {joint: set(np.flatnonzero(means[joint]).tolist()) for joint in (14, 15, 1, 4)}
    assert rows == {14: {14, 8, 11, 15}, 15: {15, 1}, 1: {1, 0, 2, 5, 16}, 4: {4}}
    np.testing.assert_allclose(means[14, [8, 11, 14, 15]], 0.25)


@pytest.mark.parametrize(("misread", "right"), [(True, 3), (False, 459)])
def test_the_published_reshape_leaves_3_of_459_child_keys_in_place(misread, right):
    """Card section 8, fault 1, at 27 frames; the corrected order has every key in place."""
    attention = TemporalAttention(1, 1, child_keys=True, misread=misread)
    number = torch.arange(459.0).view(1, 27, 17, 1)
    own = number.transpose(1, 2).reshape(17, 27, 1)
    assert int((attention._arranged(number) == own).sum()) == right


# --- the network ----------------------------------------------------------------------------------
@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_corrected_network_commutes_with_exchanging_the_sides(skeleton, kind):
    made, (features, time) = network(skeleton, **kind), inputs()
    order = list(skeleton.mirrored)
    with torch.no_grad():
        difference = made(features[:, :, order], time) - made(features, time)[:, :, order]
    assert difference.abs().max() < 1e-5


def test_the_reference_network_does_not_commute_with_exchanging_the_sides():
    """The published faults, on purpose: the chain order alone is enough (17 frames: no HRTT)."""
    made, (features, time) = network(frames=17, layout="reference"), inputs(17)
    order = list(H36M_17.mirrored)
    with torch.no_grad():
        difference = made(features[:, :, order], time) - made(features, time)[:, :, order]
    assert difference.abs().max() > 1e-3


def test_seventeen_frames_are_not_taken_for_joints():
    """Without frame embeddings, a network that treats frames alike commutes with permuting them."""
    made, (features, time) = network(frames=17), inputs(17)
    made.frame_embedding.data.zero_()
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = made(features[:, order], time) - made(features, time)[:, order]
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize(("frames", "reads"), [(17, False), (16, True)])
def test_the_reference_network_ignores_child_keys_at_17_frames_only(frames, reads):
    made, (features, time) = network(frames=frames, layout="reference"), inputs(frames)
    with torch.no_grad():
        before = made(features, time)
        made.temporal[1].attention.child_keys.weight.add_(1.0)
        assert torch.equal(made(features, time), before) is not reads


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_of_the_corrected_network_gets_a_gradient(kind):
    made, (features, time) = network(**kind).train(), inputs()
    made(features, time).square().sum().backward()
    lacking = [n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    assert lacking == []


def test_the_reference_network_holds_a_linear_per_hierarchical_layer_that_nothing_uses():
    made, (features, time) = network(layout="reference"), inputs()
    made(features, time).sum().backward()
    unused = {n for n, p in made.named_parameters() if p.grad is None}
    assert unused == {
        f"spatial.{layer}.attention.child_keys.{kind}"
        for layer in (1, 2)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("layout", ["corrected", "reference"])
def test_a_sequence_does_not_depend_on_its_batch_mates(layout):
    made, (features, time) = network(layout=layout), inputs(batch=4)
    with torch.no_grad():
        alone = torch.cat([made(features[[i]], time[[i]]) for i in range(4)])
        torch.testing.assert_close(made(features, time), alone, rtol=0, atol=1e-5)


def test_output_depends_on_the_time_and_on_fractions_of_it():
    made, (features, _) = network(), inputs(batch=1)
    with torch.no_grad():
        at = [made(features, torch.tensor([t])) for t in (400.0, 400.5, 900.0)]
    assert (at[0] - at[1]).abs().max() > 1e-6
    assert (at[0] - at[2]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["corrected", "reference"])
def test_the_network_compiles_to_one_graph(layout):
    made, (features, time) = network(layout=layout), inputs()
    compiled = torch.compile(made, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(features, time), made(features, time))


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_bfloat16_weights_give_the_same_joints_to_its_precision(kind):
    made, (features, time) = network(**kind), inputs()
    with torch.no_grad():
        exact = made(features, time)
        rounded = made.bfloat16()(features, time)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_any_skeleton_will_do():
    made, (features, time) = network(COCO_17), inputs()
    assert made(features, time).shape == (2, 5, 17, 3)
    assert made.level_embedding.shape == (5, 16)  # nose, eyes and shoulders, ..., ankles


# --- hop bias and drop path -----------------------------------------------------------------------
def test_hop_bias_is_a_softmax_over_distances_times_its_strength():
    """Card section 9: buckets of 1, 2, 3 and more hops, none for the joint itself, 0.1 at first."""
    bias = HopBias(H36M_17, heads=2)
    nn.init.normal_(bias.logits, generator=torch.Generator().manual_seed(0))
    shares = bias.logits.detach().softmax(dim=-1)
    found = bias().detach()
    # pelvis to: itself, right hip, knee, ankle; right to left ankle are 6 hops
    pairs = [(0, 1), (0, 2), (0, 3), (3, 6)]
    expected = 0.1 * shares
    torch.testing.assert_close(torch.stack([found[:, i, j] for i, j in pairs], -1), expected)
    assert not found.diagonal(dim1=1, dim2=2).any()


def test_hop_bias_without_strength_is_plain_attention():
    biased, plain = network(spatial="hop-bias"), network(spatial="plain")
    biased.hop_bias.strength.data.zero_()
    plain.load_state_dict(biased.state_dict(), strict=False)
    features, time = inputs()
    with torch.no_grad():
        torch.testing.assert_close(biased(features, time), plain(features, time))


@pytest.mark.parametrize("axis", [1, 2])
def test_drop_path_leaves_whole_frames_or_joints_out_and_keeps_the_mean(axis):
    torch.manual_seed(0)
    dropped = DropPath(0.25, axis)(torch.ones(40, 50, 50, 2)).movedim(axis, 1)
    first = dropped[:, :, :1, :1]
    assert torch.equal(dropped, first.expand_as(dropped))
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert abs(float(first.mean()) - 1) < 5 * (0.25 / 0.75 / first.numel()) ** 0.5


def test_drop_path_is_off_in_evaluation():
    made, (features, time) = network(drop_path=0.9), inputs()
    with torch.no_grad():
        assert torch.equal(made(features, time), made(features, time))
        assert not torch.equal(made.train()(features, time), made.eval()(features, time))


# --- what is refused ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "published"}, "unknown layout 'published'"),
        ({"spatial": "hops"}, "unknown spatial 'hops'"),
        ({"layout": "reference", "spatial": "plain"}, "choose layout 'corrected'"),
        ({"width": 18, "heads": 4}, "multiple of heads"),
        ({"frames": 0}, "frames must be a positive whole number"),
        ({"drop_path": 1.0}, r"drop_path in \[0, 1\)"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(StructDiffError, match=message):
        network(**settings)


@pytest.mark.parametrize("shape", [(2, 6, 17, 6), (2, 5, 16, 6), (2, 5, 17, 5), (5, 17, 6)])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(StructDiffError, match=r"expected features \(B, 5, 17, 6\)"):
        network()(torch.zeros(shape), torch.zeros(2))


# --- made ready for inference ---------------------------------------------------------------------
PREPARED = [
    *KINDS,
    {"frames": 17},
    {"layout": "reference"},
    {"layout": "reference", "frames": 17},
    {"layout": "d3dp"},
    {"skeleton": COCO_17},
]


@pytest.mark.parametrize("settings", PREPARED, ids=lambda s: ",".join(map(str, s)) or "default")
@pytest.mark.parametrize("packs", [True, False], ids=["oneDNN", "plain"])
def test_a_prepared_network_gives_the_same_joints(settings, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(inference, "_packs", lambda: False)
    made = network(**settings)
    features, time = inputs(made.frames, batch=3)
    with torch.no_grad():
        expected = made(features, time)
    found = made.prepare_for_inference()(features, time)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_prepared_network_takes_a_batch_in_pieces(monkeypatch):
    monkeypatch.setattr(inference, "PIECE", 2 * 5 * 17)
    made, (features, time) = network(), inputs(batch=5)
    with torch.no_grad():
        expected = made(features, time)
    found = made.prepare_for_inference()(features, time)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_prepared_network_keeps_its_weights_when_the_other_is_trained_on():
    made, (features, time) = network(), inputs()
    prepared = made.prepare_for_inference()
    before = prepared(features, time)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)
    assert torch.equal(prepared(features, time), before)


def test_only_float32_is_prepared():
    with pytest.raises(StructDiffError, match="float32 on the CPU"):
        network().bfloat16().prepare_for_inference()


def test_a_prepared_network_refuses_features_of_another_shape():
    with pytest.raises(StructDiffError, match=r"expected features \(B, 5, 17, 6\)"):
        network().prepare_for_inference()(torch.zeros(2, 6, 17, 6), torch.zeros(2))
