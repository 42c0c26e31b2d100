# The reference run: Elon Musk's tweets (Kaggle's gpreda/elon-musk-tweets), from scratch, in minutes on a CPU:
#
#     python train.py config/elon.py --batch_size=32
#
# README's recipe tells what each part is worth; tests/search.py measures it.
n_layer = 2  # 4 are no better
n_head = 4
n_embd = 128
block_size = 64
dropout = 0.2  # 0.1 and 0.3 are worse
noise = 0.5  # the strongest regulariser
noise_fall = 0.3  # changes no loss; best.pt keeps the network of before, and sample.py draws with it
separate_tweets = True  # the previous tweet does not help, it distracts
cut = 0.05  # also learn to go on when the beginning of a tweet is out of sight
compact_vocab = True  # 85 % of GPT-2's tokens never occur here
spelling = 8192  # vectors for groups of letters: "Rocket", " rockets" and " rocket" share what they learn
batch_size = 32
epochs = 46  # 1,219 iterations for the reference file; 33 epochs are 0.006 bits per byte worse
patience = 4  # of 12 evaluations; smaller sets overfit sooner
learning_rate = 3e-3
warmup_iters = 20
muon = True  # for the matrices of the blocks
weight_decay = 4.0  # of the vectors of tokens and letters, most of which are seldom seen; 2 is far worse
beta2 = 0.95
