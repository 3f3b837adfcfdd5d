"""Entire face synthesis: the fingerprints it claims, the networks it trains, and what it is compared with."""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from r2m_jax.data.embedded import cut_patches, embedded_photographs
from r2m_jax.data.forge import FAMILIES, METHODS, Face, fit_method, forge_faces
from r2m_jax.data.forge.synthesis import adversarial, autoencoder, diffusion, eigenface, networks, spectrum, upsampling
from r2m_jax.data.forge.synthesis.tones import with_tones_of
from r2m_jax.errors import InputError

EFFORT = 0.005
LEARNING = tuple(name for name in FAMILIES["EFS"] if METHODS[name].fit)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return cut_patches(embedded_photographs(), 64, 48, 0)[0]


@pytest.fixture(scope="module")
def states(patches) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(fit_method(name, patches, 0, EFFORT)) for name in FAMILIES["EFS"]}


def forge(name: str, images: np.ndarray, state: dict, seed: int = 0) -> np.ndarray:
    return np.stack(list(forge_faces(name, [Face(image) for image in images], [], state, seed)))


def power(images: np.ndarray) -> np.ndarray:
    """Mean power spectrum of what a 3 × 3 median leaves, over all images and channels."""
    from scipy.ndimage import median_filter

    left = images.astype(float) - median_filter(images.astype(float), (1, 3, 3, 1))
    return (np.abs(np.fft.fft2(left, axes=(1, 2))) ** 2).mean(axis=(0, 3))


def test_there_are_at_least_nine_methods():
    assert len(FAMILIES["EFS"]) >= 9


@pytest.mark.parametrize("method", LEARNING)
def test_learning_depends_on_images_and_seed_alone(method, patches, states):
    again, other = fit_method(method, patches, 0, EFFORT), fit_method(method, patches, 1, EFFORT)
    assert {name: array.tobytes() for name, array in again.items()} == {
        name: array.tobytes() for name, array in states[method].items()
    }
    assert any(not np.array_equal(states[method][name], array) for name, array in other.items())


@pytest.mark.parametrize("method", FAMILIES["EFS"])
def test_a_stored_state_forges_the_same_at_any_size(method, states, tmp_path):
    assert all(isinstance(a, np.ndarray) and np.isfinite(a).all() for a in states[method].values())
    np.savez(tmp_path / "state.npz", **states[method])
    with np.load(tmp_path / "state.npz") as file:
        stored = dict(file)
    for height, width in ((17, 17), (33, 61)):
        image = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        forged = forge(method, image, states[method])
        assert forged.shape == image.shape
        assert forged.dtype == np.uint8
        np.testing.assert_array_equal(forge(method, image, stored), forged)


@pytest.mark.parametrize("method", FAMILIES["EFS"])
def test_forgeries_resemble_their_images(method, patches, states):
    forged = forge(method, patches[:16], states[method]).astype(float)
    real = patches[:16].astype(float)
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(forged, real, strict=True)]
    assert np.median(alike) > 0.9
    assert np.abs(forged.mean(axis=(1, 2)) - real.mean(axis=(1, 2))).max() < 6


@pytest.mark.integration
def test_a_worker_process_forges_the_same(patches, states):
    method = "vae_reconstruction"
    # A new process imports and compiles everything again, hence one image.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        elsewhere = pool.submit(forge, method, patches[:1], states[method]).result(timeout=120)
    difference = elsewhere.astype(int) - forge(method, patches[:1], states[method])
    # Another number of devices may sum in another order; a level that rounds the other way is all it can change.
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3


def test_tones_are_the_sources(patches):
    source = (64 + patches[4] / 2).astype(np.uint8)
    forged = with_tones_of(0.8 * source[::-1].astype(float) + 30, source)
    np.testing.assert_allclose(forged.mean(axis=(0, 1)), source.mean(axis=(0, 1)), atol=0.1)
    np.testing.assert_allclose(forged.std(axis=(0, 1)), source.std(axis=(0, 1)), atol=0.1)
    flat = np.full_like(source, 7)
    np.testing.assert_array_equal(with_tones_of(flat.astype(float) + 3, flat), flat)


def test_transposed_convolution_leaves_a_checkerboard(patches, states):
    real, forged = power(patches), power(forge("transposed_convolution", patches, states["transposed_convolution"]))
    nyquist = [(32, 0), (0, 32), (32, 32)]
    for place in nyquist:
        assert forged[place] > 20 * real[place]
    ordinary = np.ones((64, 64), bool)
    ordinary[30:35], ordinary[:, 30:35], ordinary[[0], :], ordinary[:, [0]] = False, False, False, False
    assert 0.2 < np.median(forged[ordinary] / real[ordinary]) < 2


def test_nearest_upsampling_learns_the_least_squares_kernel(patches):
    state = upsampling.fit_nearest(patches[:24], 0, 1.0)
    inputs, outputs = [], []
    for image in patches[:24]:
        halved = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        doubled = np.pad(np.kron(halved, np.ones((2, 2, 1))), ((2, 2), (2, 2), (0, 0)), mode="symmetric")
        windows = [doubled[i : i + 64, j : j + 64] for i in range(5) for j in range(5)]
        inputs.append(np.concatenate(windows, axis=2).reshape(-1, 75))
        outputs.append(image.reshape(-1, 3).astype(float))
    x, y = np.concatenate(inputs), np.concatenate(outputs)
    everywhere = Ridge(1.0).fit(x, y)
    left = ((y - everywhere.predict(x)) ** 2).mean()
    ours = ((y - x @ state["kernel"] - state["bias"]) ** 2).mean()
    assert left <= ours < 1.05 * left  # ours saw a share of the pixels
    assert ours < 0.95 * ((y - x[:, 36:39]) ** 2).mean()


def test_nearest_upsampling_leaves_little_at_the_highest_frequencies(patches, states):
    real, forged = power(patches), power(forge("nearest_upsampling", patches, states["nearest_upsampling"]))
    assert forged[26:38, 26:38].mean() < 0.6 * real[26:38, 26:38].mean()


def test_spectral_peaks_lie_on_the_grid_of_three_doublings(patches, states):
    method = "spectral_peaks"
    tile = states[method]["tile"]
    assert tile.shape == (spectrum.PERIOD, spectrum.PERIOD, 3)
    assert np.mean(tile**2) == pytest.approx(1)
    np.testing.assert_allclose(tile.mean(axis=(0, 1)), 0, atol=1e-12)
    ratio = power(forge(method, patches, states[method])) / power(patches)
    grid = np.zeros((64, 64), bool)
    grid[::8, ::8] = True
    grid[0, 0] = False
    assert np.median(ratio[grid]) > 2 * np.median(ratio[~grid])
    assert np.median(ratio[~grid]) < 1.5


def test_spectral_decay_keeps_low_frequencies_and_changes_the_decay(patches):
    forged = forge("spectral_decay", patches, spectrum.fit_decay(patches, 0, 1.0))
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    window = np.hanning(64)[:, None] * np.hanning(64)
    change = {}
    for name, band in (("low", (radius > 0.02) & (radius < 0.1)), ("high", radius > 0.4)):
        real, made = (
            (np.abs(np.fft.fft2(x.astype(float).mean(axis=3) * window))[:, band] ** 2).mean(axis=1) + 1
            for x in (patches, forged)
        )
        change[name] = np.log(made / real)
    assert np.median(np.abs(change["low"])) < 0.1
    assert np.median(change["high"]) < -0.3


def test_eigenfaces_span_the_principal_subspace(patches):
    state = eigenface.fit(patches, 0, 1.0)
    faces = np.stack([eigenface._small(image) for image in patches]).reshape(48, -1)
    reference = PCA(20, svd_solver="full").fit(faces)
    overlap = np.linalg.svd(state["components"][:20] @ reference.components_.T, compute_uv=False)
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    np.testing.assert_allclose(state["deviations"][:20] ** 2, reference.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(state["texture"] @ state["texture"].T, np.eye(192), atol=1e-9)


def test_one_image_has_no_principal_components_but_is_forged(patches):
    state = eigenface.fit(patches[:1], 0, 1.0)
    assert state["components"].shape[0] == 0
    assert forge("eigenface", patches[:1], dict(state)).shape == (1, 64, 64, 3)


def test_convolutions_and_channels_are_torchs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 12, 4)).astype(np.float32)
    params = networks.new_convolution(rng, "a", 4, 5)
    params["a.bias"] = rng.standard_normal(5).astype(np.float32)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor(params["a.kernel"]).permute(3, 2, 0, 1),
        torch.tensor(params["a.bias"]),
        padding=1,
    )
    np.testing.assert_allclose(
        networks.convolve(params, "a", jnp.asarray(x)), theirs.permute(0, 2, 3, 1).numpy(), atol=1e-5
    )
    squares = networks.into_channels(jnp.asarray(x), 2)
    unshuffled = torch.nn.functional.pixel_unshuffle(torch.tensor(x).permute(0, 3, 1, 2), 2)  # channel-major
    unshuffled = unshuffled.reshape(2, 4, 4, 4, 6).permute(0, 3, 4, 2, 1).reshape(2, 4, 6, 16)
    np.testing.assert_array_equal(squares, unshuffled.numpy())
    np.testing.assert_array_equal(networks.out_of_channels(squares, 2), x)
    block = networks.new_block(rng, "b", 4)
    np.testing.assert_array_equal(networks.block(block, "b", jnp.asarray(x)), x)


def test_images_are_framed_by_mirroring_and_come_back():
    image = np.random.default_rng(0).integers(0, 256, (33, 70, 3), dtype=np.uint8)
    framed = networks.framed(image)
    assert framed.shape == (1, 64, 128, 3)
    np.testing.assert_array_equal(framed[0, 33:64, :70], framed[0, 32:1:-1, :70])
    np.testing.assert_allclose(networks.unframed(jnp.asarray(framed), (33, 70)), image, atol=1e-4)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="training of the autoencoder left the finite numbers; choose another seed"):
        networks.checked("autoencoder", {"a": np.zeros(2), "b": np.array([1.0, np.nan])})


def test_the_untrained_autoencoder_is_principal_component_analysis(patches):
    params = autoencoder.initial(patches, np.random.default_rng(0))
    images = jnp.asarray(networks.scaled(patches))
    decoded = jax.jit(lambda x: autoencoder.decode(params, autoencoder.encode(params, x)[0]))(images)
    ours = float(jnp.mean((decoded - images) ** 2))
    cells = np.asarray(networks.into_channels(images, 4)).reshape(-1, 48)
    pca = PCA(autoencoder.LATENTS).fit(cells)
    theirs = ((cells - pca.inverse_transform(pca.transform(cells))) ** 2).mean()
    assert theirs <= ours * 1.0001
    assert ours < 1.1 * theirs


def test_the_evidence_bound_holds_torchs_divergence(patches):
    rng = np.random.default_rng(1)
    params = autoencoder.initial(patches, rng)
    images = networks.scaled(patches[:4])
    noise = rng.standard_normal((4, 64, 64, autoencoder.LATENTS)).astype(np.float32)
    mean, log_variance = (np.array(a) for a in jax.jit(autoencoder.encode)(params, jnp.asarray(images)))
    normal = torch.distributions.Normal(torch.tensor(mean), torch.tensor(np.exp(log_variance / 2)))
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum().item()
    decoded = jax.jit(autoencoder.decode)(params, jnp.asarray(mean + np.exp(log_variance / 2) * noise[:, :16, :16]))
    error = float(np.mean((np.asarray(decoded) - images) ** 2))
    expected = 0.5 * np.log(error + 1e-6) + divergence / images.size
    assert float(jax.jit(autoencoder.loss)(params, images, noise)) == pytest.approx(expected, rel=1e-4)


def test_training_lowers_the_autoencoders_bound(patches):
    rng = np.random.default_rng(0)
    params = autoencoder.initial(patches, rng)
    trained, losses = networks.train(
        "autoencoder", autoencoder.loss, params, patches, steps=30, noises=autoencoder.LATENTS, peak=2e-3, rng=rng
    )
    images = jnp.asarray(networks.scaled(patches[:8]))
    noise = jnp.asarray(np.random.default_rng(5).standard_normal((8, 64, 64, autoencoder.LATENTS)), jnp.float32)
    value = jax.jit(autoencoder.loss)
    assert losses.shape == (30,)
    assert value(trained, images, noise) < value(params, images, noise) - 0.05


def test_the_schedule_is_ddpms():
    share = diffusion.signal_share()
    assert share.shape == (1001,)
    assert share[0] == 1
    assert share[1] == pytest.approx(1 - 1e-4)
    assert share[1000] == pytest.approx(4.0358e-5, rel=1e-4)  # of Ho et al.'s linear schedule
    # Adding noise step by step and all at once give the same variance.
    variance = 0.0
    for beta in 1 - share[1:] / share[:-1]:
        variance = (1 - beta) * variance + beta
    assert variance == pytest.approx(1 - share[-1])


def test_ddim_with_the_true_noise_comes_back_to_the_image():
    rng = np.random.default_rng(0)
    image, noise = (jnp.asarray(rng.standard_normal((1, 4, 4, 3)), jnp.float32) for _ in range(2))
    share = diffusion.signal_share()[[300, 120, 40, 0]].astype(np.float32)
    x = np.sqrt(share[0]) * image + np.sqrt(1 - share[0]) * noise
    for now, then in itertools.pairwise(share):
        x = diffusion.step_back(x, noise, now, then)
        np.testing.assert_allclose(x, np.sqrt(then) * image + np.sqrt(1 - then) * noise, atol=2e-6)
    np.testing.assert_allclose(x, image, atol=2e-6)


def test_the_untrained_noise_predictor_is_the_wiener_filter(patches):
    params = diffusion.initial(patches, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    mean, directions = params["cell.mean"].astype(float), params["cell.directions"].astype(float)
    covariance = directions.T * params["cell.variances"] @ directions
    share = 0.8
    noisy = rng.standard_normal((1, 4, 4, 3))
    # E[noise | noisy] of jointly normal vectors, by the covariance matrix itself.
    joint = share * covariance + (1 - share) * np.eye(48)
    expected = np.sqrt(1 - share) * np.linalg.solve(joint, noisy.ravel() - np.sqrt(share) * mean)
    predicted = jax.jit(diffusion.predicted_noise)(
        params, jnp.asarray(noisy, jnp.float32), jnp.asarray([40.0]), jnp.asarray([share], jnp.float32)
    )
    np.testing.assert_allclose(np.asarray(predicted).ravel(), expected, atol=1e-4)


def test_training_teaches_the_noise(patches):
    rng = np.random.default_rng(0)
    params = diffusion.initial(patches[4:5], rng)
    trained, losses = networks.train(
        "noise predictor", diffusion.loss, params, patches[4:5], steps=40, noises=4, peak=3e-3, rng=rng
    )
    assert losses.shape == (40,)
    crops, noise = next(networks.batches(patches[4:5], 1, 4, np.random.default_rng(7)))
    value = jax.jit(diffusion.loss)
    assert value(trained, crops, noise) < 0.95 * value(params, crops, noise)
    error = [((forge("ddpm_edit", patches[4:5], s).astype(float) - patches[4]) ** 2).mean() for s in (params, trained)]
    assert error[1] < error[0]


def test_the_untrained_generator_is_a_cubic_interpolation(patches):
    params = adversarial.initial_generator(np.random.default_rng(0))
    small = networks.pooled(jnp.asarray(networks.scaled(patches[:2])), 2)
    np.testing.assert_allclose(small, networks.scaled(patches[:2]).reshape(2, 32, 2, 32, 2, 3).mean((2, 4)), atol=1e-6)
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 4)), jnp.float32)
    np.testing.assert_array_equal(
        jax.jit(adversarial.generate)(params, small, noise), jax.image.resize(small, (2, 64, 64, 3), "cubic")
    )


def test_the_discriminator_pays_within_the_margin():
    real, forged = jnp.asarray([[[[2.0], [0.5]]]]), jnp.asarray([[[[-3.0], [1.0]]]])
    assert float(adversarial.discriminator_loss(real, forged)) == pytest.approx(0.25 + 1.0)


def test_adversarial_training_improves_both(patches):
    one = patches[4:5]
    trained, losses = adversarial.train_pair(one, 0, 40)
    assert losses.shape == (40, 2)
    assert losses[-5:, 1].mean() < 0.9 * losses[:3, 1].mean()
    untrained = adversarial.initial_generator(np.random.default_rng(0))
    error = [
        np.abs(forge("gan_super_resolution", one, state).astype(float) - one).mean() for state in (untrained, trained)
    ]
    assert error[1] < error[0]
