"""How good the recogniser is: datasets in, `report.json` out. Import as `from eval.wer import ...`."""
