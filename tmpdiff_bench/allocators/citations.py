"""BibTeX of the methods' sources, as `Allocation.citation` hands them on."""

from __future__ import annotations

TMPDIFF = """@misc{tmpdiff2026,
  title = {TMPDiff: Temporal Mixed-Precision for Diffusion Models},
  author = {Basile Lewandowski and Simon Kurz and Aditya Shankar and Robert Birke and
            Jian-Jia Chen and Lydia Y. Chen},
  year = {2026},
  eprint = {2603.14062},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2603.14062}
}"""

TMPDIFF_BENCH = """@software{tmpdiff_bench,
  title = {tmpdiff_bench},
  author = {{The tmpdiff_bench authors}},
  year = {2026}
}"""

RANDOM_SEARCH = """@article{bergstra2012random,
  title = {Random Search for Hyper-Parameter Optimization},
  author = {James Bergstra and Yoshua Bengio},
  journal = {Journal of Machine Learning Research},
  volume = {13},
  pages = {281--305},
  year = {2012}
}"""

MARGINAL = """@article{fox1966discrete,
  title = {Discrete Optimization Via Marginal Analysis},
  author = {Bennett Fox},
  journal = {Management Science},
  volume = {13},
  number = {3},
  pages = {210--216},
  year = {1966}
}"""

KNAPSACK = """@book{kellerer2004knapsack,
  title = {Knapsack Problems},
  author = {Hans Kellerer and Ulrich Pferschy and David Pisinger},
  publisher = {Springer},
  year = {2004}
}"""

QUADRATIC = """@article{billionnet2009improving,
  title = {Improving the performance of standard solvers for quadratic 0-1 programs by a tight
           convex reformulation: The QCR method},
  author = {Alain Billionnet and Sourour Elloumi and Marie-Christine Plateau},
  journal = {Discrete Applied Mathematics},
  volume = {157},
  number = {6},
  pages = {1185--1197},
  year = {2009}
}"""

BEAM = """@phdthesis{lowerre1976harpy,
  title = {The HARPY Speech Recognition System},
  author = {Bruce T. Lowerre},
  school = {Carnegie Mellon University},
  year = {1976}
}"""

OMS_DPM = """@inproceedings{liu2023omsdpm,
  title = {OMS-DPM: Optimizing the Model Schedule for Diffusion Probabilistic Models},
  author = {Enshu Liu and Xuefei Ning and Zinan Lin and Huazhong Yang and Yu Wang},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}"""
