# The reference run: Elon Musk's tweets (Kaggle's gpreda/elon-musk-tweets), from scratch, in minutes on a CPU.
# Figures are bits per byte on a development part of the training tweets (tests/search.py), one seed each.
n_layer = 2  # 1 is 0.003 bits per byte worse; 4 are 0.003 better, and 1.6 times slower
n_head = 4
n_embd = 128  # 192 is no better, and 1.5 times slower
block_size = 64
dropout = 0.2
separate_tweets = True  # the previous tweet does not help, it distracts
output_bias = True  # start from the tokens' frequencies instead of learning them
compact_vocab = True  # 85 % of GPT-2's tokens never occur here
spelling = 8192  # vectors for groups of letters: "Rocket", " rockets" and " rocket" share what they learn
ngram_order = 5
ngram_weight = 0.4  # 0.3 is equal, 0.5 is 0.003 worse
noise = 0.5  # the strongest regulariser; 0.3 gets 0.003 lower, then overfits; 0.7 is 0.02 worse
batch_size = 32
max_iters = 1200  # 45 epochs
eval_interval = 100
learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 20
weight_decay = 4.0  # of matrices; 2 and 8 are 0.004 worse
beta2 = 0.95
average_decay = 0.99  # evaluate a running mean over about 100 iterations: 0.008 better
