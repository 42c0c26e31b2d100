# The reference run, for a few thousand tweets (55,000 tokens here): minutes on a CPU.
#
#     python train.py config/elon.py
#
# Chosen on Elon Musk's tweets (Kaggle's gpreda/elon-musk-tweets). README tells what each part is worth.
n_layer = 2  # 4 are no better on so little text
n_head = 4
n_embd = 128
block_size = 64  # longer than nearly every tweet
dropout = 0.2  # 0.1 and 0.3 are worse
noise = 0.5  # the strongest regulariser; more text needs less
noise_fall = 0.15  # over this last part of the run it falls to 0; sample.py compares before and after
separate_tweets = True  # earlier tweets only distract
cut = 0.05  # before 5 % of the tokens, hide everything earlier in the tweet
compact_vocab = True  # 85 % of GPT-2's tokens never occur here
spelling = 8192  # vectors for groups of letters: "Rocket", " rockets" and " rocket" share what they learn
batch_size = 32
epochs = 46  # 1,219 iterations for Kaggle's file
patience = 4  # stop after so many evaluations, of about 12, without a better val loss
learning_rate = 3e-3
warmup_iters = 20
muon = True  # for the matrices of the blocks
weight_decay = 4.0  # much, because most tokens are seldom seen; Muon's matrices get a quarter of it
beta2 = 0.95
