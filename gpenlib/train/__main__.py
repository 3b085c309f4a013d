"""``python -m gpenlib.train FILE key=value ...``; on several devices with ``torchrun --nproc_per_node``."""

from gpenlib.train.trainer import main

raise SystemExit(main())
