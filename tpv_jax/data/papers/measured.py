"""Lengths of sources, measured on public data."""

MEASURED: dict[str, tuple[int, int, int, int, int]] = {
  "glue_qnli": (5463, 54, 98, 130, 305),
  "glue_sst2": (7792, 31, 58, 70, 108),
  "glue_stsb": (7249, 30, 70, 87, 152),
  "glue_mrpc": (4045, 66, 92, 103, 138),
  "glue_rte": (2767, 65, 178, 224, 313),
  "glue_cola": (9594, 12, 23, 29, 49),
  "super_glue_boolq": (3334, 141, 292, 435, 1138),
  "super_glue_wic": (702, 30, 44, 51, 74),
  "super_glue_wsc": (168, 37, 83, 99, 132),
  "super_glue_cb": (120, 85, 184, 285, 298),
  "snli": (2527, 32, 52, 64, 85),
  "ag_news": (7600, 63, 88, 115, 216),
  "glue_qnli_t5": (5463, 59, 103, 135, 310),
  "glue_sst2_t5": (7792, 36, 63, 75, 113),
  "glue_stsb_t5": (7249, 35, 75, 92, 157),
  "glue_mrpc_t5": (4045, 71, 97, 108, 143),
  "glue_rte_t5": (2767, 69, 182, 228, 317),
  "glue_cola_t5": (9594, 14, 25, 31, 51),
  "super_glue_boolq_t5": (3334, 145, 296, 439, 1142),
  "super_glue_wic_t5": (702, 33, 47, 54, 77),
  "super_glue_wsc_t5": (168, 40, 83, 99, 132),
  "super_glue_cb_t5": (120, 88, 187, 288, 301),
}
"""Number of texts, and their median, 95th and 99th percentile and longest length in tokens
of T5's vocabulary, EOS included. Measured on public copies of train and held-out rows, some
of them parts of the official splits (QNLI, SNLI, BoolQ, WiC, CB, WSC). AG News: the test
file only. SST-2: the data set of whole sentences (6,920 and 872), while GLUE also trains on
phrases. MRPC: an imperfect copy, without GLUE's own validation split."""
