# Go on training GPT-2, which already knows English. Needs `pip install transformers`; downloads 550 MB once.
#
#     python train.py config/finetune.py
#
# 124 million parameters: 12 minutes and 4.3 GB of memory on one core of an AMD EPYC with bfloat16, measured
# with random weights of this size. Not tried with GPT-2's own weights, nor on a GPU.
init_from = "gpt2"  # or gpt2-medium, gpt2-large, gpt2-xl, or a folder with such weights
block_size = 64  # of GPT-2's 1,024: tweets are short
separate_tweets = True
dropout = 0.1  # GPT-2's own
batch_size = 32
max_iters = 60  # 2.3 epochs of 55,000 tokens; more tweets need more
eval_interval = 10
learning_rate = 3e-5  # a hundredth of what a start from scratch takes
warmup_iters = 5
weight_decay = 0.1
beta2 = 0.95
