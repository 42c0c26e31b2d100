# The reference run: Elon Musk's tweets (Kaggle's gpreda/elon-musk-tweets), from scratch, in minutes on a CPU.
n_layer = 2
n_head = 4
n_embd = 128
block_size = 64
dropout = 0.2
compact_vocab = True
output_bias = True
unseen_chance = 0.5
batch_size = 32
max_iters = 600
eval_interval = 50
learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 20
weight_decay = 4.0
beta2 = 0.99
average_decay = 0.99
