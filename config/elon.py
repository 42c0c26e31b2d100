# The reference run, for some thousand tweets (55,000 tokens here): minutes on a CPU.
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
noise_fall = 0.3  # changes no loss; leaves sample.py two networks, one that draws and one that chooses
separate_tweets = True  # the previous tweet does not help, it distracts
cut = 0.05  # also learn to go on when the beginning of a tweet is out of sight
compact_vocab = True  # 85 % of GPT-2's tokens never occur here; sample.py --export needs False
spelling = 8192  # vectors for groups of letters: "Rocket", " rockets" and " rocket" share what they learn
batch_size = 32
epochs = 46  # 1,219 iterations for the reference file; 33 epochs are 0.006 bits per byte worse
patience = 4  # of 12 evaluations; fewer tweets are sooner known by heart
learning_rate = 3e-3
warmup_iters = 20
muon = True  # for the matrices of the blocks
weight_decay = 4.0  # of the vectors of tokens and letters, most of which are seldom seen; 2 is far worse
beta2 = 0.95
