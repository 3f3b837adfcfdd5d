"""Face reenactment: the image's own content moved, as expression, speech and pose move a face, and rendered anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from r2m_jax.data.forge.blending import feathered, paste, to_uint8
from r2m_jax.data.forge.codec import h264
from r2m_jax.data.forge.donors import fitted
from r2m_jax.data.forge.landmarks import LEFT_EYE, MOUTH, RIGHT_EYE, face_width, hull, outline, points_of
from r2m_jax.data.forge.method import Face, Method, State
from r2m_jax.data.forge.motion import anchored_field, expression, expression_of, head_turn, plate_motions, sway
from r2m_jax.data.forge.warping import similarity, smooth_field, through_bottleneck, warp


def expression_warp(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Brows, lids, lips and chin moved to another expression, the skin between following smoothly."""
    points, inside = _region(face, rng)
    field = anchored_field(points, expression(points, rng), inside.shape)
    moved = through_bottleneck(warp(face.pixels, field), rng.uniform(1.6, 2.2))
    return paste(face.pixels, moved, feathered(inside, 0.035 * face_width(points)))


def expression_transfer(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The expression of another face, mesh triangle by mesh triangle; without known landmarks a random one."""
    points, inside = _region(face, rng)
    known = [donor for donor in donors if donor.landmarks is not None]
    moved = expression_of(known[rng.integers(len(known))], points) if known else expression(points, rng)
    mesh = fitted(Face(face.pixels, points), moved, inside.shape)
    rendered = through_bottleneck(mesh, rng.uniform(1.4, 2.0)) + rng.uniform(-3, 3, 3)
    return paste(face.pixels, rendered, feathered(inside, rng.uniform(0.02, 0.05) * face_width(points)))


def mouth_replacement(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The mouth alone stretched or squeezed and rendered again at lower resolution."""
    points, whole = _region(face, rng)
    lips = points[MOUTH]
    middle = lips.mean(axis=0)
    inside = hull(middle + rng.uniform(1.8, 2.4) * (lips - middle), whole.shape)
    inside = inside if inside.any() else whole
    opening = rng.choice([rng.uniform(0.65, 0.85), rng.uniform(1.2, 1.5)])
    shift = tuple(rng.uniform(-0.03, 0.03, 2) * face_width(points))
    field = similarity(whole.shape, (middle[1], middle[0]), scale=(opening, 1 + rng.uniform(-0.1, 0.1)), shift=shift)
    rendered = through_bottleneck(warp(face.pixels, field), rng.uniform(1.8, 2.6)) + rng.uniform(-4, 4, 3)
    return paste(face.pixels, rendered, feathered(inside, rng.uniform(0.02, 0.045) * face_width(points)))


def lip_sync(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The lower half of the face's box spoken anew at 96 pixels and pasted back as a box."""
    points, whole = _region(face, rng)
    height, width = whole.shape
    ring = outline(points)
    left, right = np.clip([ring[:, 0].min(), ring[:, 0].max()], 1, width - 1).astype(int)
    top, bottom = np.clip([points[29, 1], ring[:, 1].max()], 1, height - 1).astype(int)
    inside = np.zeros_like(whole)
    inside[top:bottom, left:right] = True
    inside = inside if inside.any() else whole
    spoken = warp(face.pixels, anchored_field(points, expression(points, rng), whole.shape))
    rendered = through_bottleneck(spoken, max(1.5, face_width(points) / rng.uniform(60, 80))) + rng.uniform(-3, 3, 3)
    return paste(face.pixels, rendered, feathered(inside, rng.uniform(0.005, 0.02) * face_width(points)))


def gaze_redirection(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Both eyes resampled along one smooth field, as when the gaze is turned."""
    points, whole = _region(face, rng)
    unit = face_width(points)
    inside = np.zeros_like(whole)
    for eye in (RIGHT_EYE, LEFT_EYE):
        middle = points[eye].mean(axis=0)
        inside |= hull(middle + [1.6, 2.6] * (points[eye] - middle), whole.shape)
    inside = inside if inside.any() else whole
    turn = rng.uniform(0.02, 0.045, 2) * rng.choice([-1, 1], 2) * unit
    field = np.stack([np.full(whole.shape, turn[0] / 2), np.full(whole.shape, turn[1])])
    field += 0.01 * unit * np.stack([smooth_field(whole.shape, 8, rng), smooth_field(whole.shape, 8, rng)])
    moved = through_bottleneck(warp(face.pixels, field), rng.uniform(1.8, 2.6))
    return paste(face.pixels, moved, feathered(inside, rng.uniform(0.015, 0.03) * unit))


def pose_turn(face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The head turned in space over its own background and rendered at a generator's resolution."""
    points, whole = _region(face, rng)
    yaw = rng.uniform(0.1, 0.25) * rng.choice([-1, 1])
    field = head_turn(points, whole.shape, yaw, rng.uniform(-0.1, 0.1))
    rendered = through_bottleneck(warp(face.pixels, field), rng.uniform(1.5, 2.0))
    return paste(face.pixels, rendered, feathered(whole, rng.uniform(0.03, 0.06) * face_width(points)))


def dense_motion(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The whole frame resampled along a smooth motion field; where it is torn, a coarser rendering shows through."""
    shape = face.pixels.shape[:2]
    amplitude = rng.uniform(0.02, 0.035) * min(shape)
    field = amplitude * np.stack([smooth_field(shape, 5, rng), smooth_field(shape, 5, rng)])
    moved = warp(face.pixels, field)
    occlusion = 1 / (1 + np.exp(-3 * smooth_field(shape, 6, rng)))[..., None]
    return to_uint8((1 - occlusion) * moved + occlusion * through_bottleneck(moved, rng.uniform(1.6, 2.2)))


def thin_plate_motion(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The whole frame moved by several thin-plate splines at once, rendered at two resolutions."""
    points, whole = _region(face, rng)
    moved = warp(face.pixels, plate_motions(points, whole.shape, rng))
    fine, coarse = through_bottleneck(moved, rng.uniform(1.2, 1.5)), through_bottleneck(moved, rng.uniform(2.0, 2.6))
    occlusion = feathered(whole, 0.15 * face_width(points))[..., None] * rng.uniform(0.3, 0.6)
    return to_uint8((1 - occlusion) * fine + occlusion * coarse)


def frame_blend(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The face as several instants of its motion laid over each other, as unsteady video leaves it."""
    points, whole = _region(face, rng)
    instants = [face.pixels.astype(np.float64)]
    for _ in range(int(rng.integers(1, 3))):
        jitter = 0.35 * sway(points, whole.shape, rng)
        instants.append(warp(face.pixels, jitter))
    weights = rng.dirichlet(np.full(len(instants), 4.0))
    return paste(
        face.pixels,
        np.einsum("k,khwc->hwc", weights, np.array(instants)),
        feathered(whole, rng.uniform(0.04, 0.08) * face_width(points)),
    )


def recoded_motion(
    face: Face, donors: Sequence[Face], state: State, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A short clip of the moving head through H.264; its last frame, predicted from those before, is kept."""
    points, whole = _region(face, rng)
    step = sway(points, whole.shape, rng)
    clip = [to_uint8(warp(face.pixels, share * step)) for share in (1.0, 0.75, 0.5, 0.25)] + [face.pixels]
    return h264(clip, crf=int(rng.integers(27, 35)))[-1]


def _region(face: Face, rng: np.random.Generator) -> tuple[Float[np.ndarray, "68 2"], Bool[np.ndarray, "h w"]]:
    points = points_of(face, rng)
    return points, hull(outline(points), face.pixels.shape[:2])


METHODS = (
    Method(
        "expression_warp",
        "FR",
        "Arad et al., Image Warping by Radial Basis Functions: Application to Facial Expressions, CVGIP 1994, "
        "https://doi.org/10.1006/cgip.1994.1015",
        "brows, lids, lips and chin moved, the skin between following smoothly",
        expression_warp,
    ),
    Method(
        "mouth_replacement",
        "FR",
        "Thies et al., Deferred Neural Rendering (NeuralTextures), SIGGRAPH 2019, https://arxiv.org/abs/1904.12356, "
        "which FaceForensics++ lets change the mouth alone, https://arxiv.org/abs/1901.08971",
        "the mouth stretched and rendered again at lower resolution",
        mouth_replacement,
    ),
    Method(
        "dense_motion",
        "FR",
        "Siarohin et al., First Order Motion Model for Image Animation, NeurIPS 2019 (dense motion field, "
        "occlusion-aware generation), https://arxiv.org/abs/2003.00196",
        "the whole frame resampled along a smooth motion field",
        dense_motion,
    ),
    Method(
        "expression_transfer",
        "FR",
        "Thies et al., Face2Face: Real-time Face Capture and Reenactment of RGB Videos, CVPR 2016, "
        "https://doi.org/10.1109/CVPR.2016.262",
        "another face's expression, mesh triangle by mesh triangle",
        expression_transfer,
    ),
    Method(
        "lip_sync",
        "FR",
        "Prajwal et al., A Lip Sync Expert Is All You Need (Wav2Lip), ACM MM 2020, https://arxiv.org/abs/2008.10010",
        "the lower half of the face spoken anew at 96 pixels, pasted as a box",
        lip_sync,
    ),
    Method(
        "gaze_redirection",
        "FR",
        "Ganin et al., DeepWarp: Photorealistic Image Resynthesis for Gaze Manipulation, ECCV 2016, "
        "https://arxiv.org/abs/1607.07215",
        "both eyes resampled along one field",
        gaze_redirection,
    ),
    Method(
        "pose_turn",
        "FR",
        "Wang et al., One-Shot Free-View Neural Talking-Head Synthesis (facevid2vid), CVPR 2021, "
        "https://arxiv.org/abs/2011.15126",
        "the head turned in space over its own background",
        pose_turn,
    ),
    Method(
        "thin_plate_motion",
        "FR",
        "Zhao and Zhang, Thin-Plate Spline Motion Model for Image Animation, CVPR 2022, "
        "https://arxiv.org/abs/2203.14367",
        "the whole frame moved by several thin-plate splines",
        thin_plate_motion,
    ),
    Method(
        "frame_blend",
        "FR",
        "Zheng et al., Exploring Temporal Coherence for More General Video Face Forgery Detection, ICCV 2021, "
        "https://arxiv.org/abs/2108.06693",
        "several instants of the face's motion laid over each other",
        frame_blend,
    ),
    Method(
        "recoded_motion",
        "FR",
        "Rössler et al., FaceForensics++, ICCV 2019, §3.3 (H.264 at two rates), https://arxiv.org/abs/1901.08971",
        "the last frame of a short clip of the moving head after H.264",
        recoded_motion,
    ),
)
