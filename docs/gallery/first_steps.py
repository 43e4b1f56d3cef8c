"""
From a model to a plan
======================

Which denoising steps of a diffusion model bear low precision? Everything here runs on the embedded
Stable-Diffusion-3-class model, on a laptop, in under two minutes.
"""

# %%
# An experiment says what is run: the model, the levels (the first is the reference), the number of
# denoising steps, prompts and noise seeds. All else has defaults.
import tempfile
from pathlib import Path

import tmpdiff_bench as tb

experiment = tb.Experiment(
    "sd3", steps=8, levels=("fp32", "w8a8", "w4a4"), num_prompts=8, num_seeds=1
)
folder = Path(tempfile.mkdtemp())

# %%
# A recording holds the runs: with every single step at a low level, and along a design of joint
# plans. It is a folder, and complete without the model; the same call goes on where it was
# interrupted.
recording = tb.record(experiment, folder / "recording")
recording

# %%
# Do the errors of single steps add up? Predictors of joint errors are compared with what was
# measured, with intervals that know that prompts and plans are shared by many rows.
report = tb.analyse(recording)
report

# %%
# ``save`` writes the whole report: a page, tables and figures.
print(report.save(folder / "report").name)

# %%
# A plan for a speedup of 1.8 is chosen on every other prompt, and judged on the rest beside rivals
# that cost no more. Here costs are in proportion to the bits multiplied; ``costs="rtx4090"`` takes
# the roofline of a card.
choice = tb.allocate(recording, speedup=1.8)
choice

# %%
# Any diffusers pipeline runs a plan by its own loop. Between its calls the pipeline is as it was.
from tmpdiff_bench.pipelines import load_pipeline

pipe = load_pipeline("sd3").pipeline
call = {"num_inference_steps": 8, "height": 64, "width": 64, "guidance_scale": 4.0}
reference = pipe("a red circle", **call).images[0]
tb.apply(pipe, choice.plan)
planned = pipe("a red circle", **call).images[0]
print(tb.describe(pipe))
tb.remove(pipe)

# %%
# The plan is text; ``to_json`` keeps the noise levels that it was made for, and
# ``python -m tmpdiff_bench.deploy export`` writes it as inference engines read it.
choice.plan

# %%
# The images, of different noise each: fix a generator's seed to compare pixels.
from matplotlib import pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(4, 2))
for ax, image, title in zip(axes, (reference, planned), ("reference", "plan"), strict=True):
    ax.imshow(image)
    ax.set_title(title)
    ax.axis("off")
