# For more tweets, from about 150,000 training tokens (9,000 tweets) on: prepare.py tells which preset fits.
#
#     python train.py config/large.py
#
# Chosen on 18,880 tweets of one person, less carefully than config/elon.py, which explains the settings.
n_layer = 4
n_head = 6
n_embd = 192
block_size = 64
dropout = 0.2
noise = 0.25  # more text needs less of it
noise_fall = 0.3  # not searched
separate_tweets = True
cut = 0.05
compact_vocab = True
spelling = 16384  # more text has more groups of letters
batch_size = 32
epochs = 14  # of 300,000 tokens: 2,114 iterations
patience = 4
learning_rate = 3e-3
warmup_iters = 20
muon = True
weight_decay = 0.7  # more text needs less of it, too
beta2 = 0.95
