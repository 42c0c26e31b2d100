# A small model for trying things out: about 10 seconds on a laptop's CPU, and poor tweets. 200 iterations are
# too few to learn anything by heart, so there is no noise and no weight decay to speak of.
#
#     python train.py config/tiny.py
n_layer = 2
n_head = 2
n_embd = 64
block_size = 32
compact_vocab = True  # most of GPT-2's 50,257 tokens never occur in a few thousand tweets
batch_size = 16
max_iters = 200
eval_interval = 50
learning_rate = 3e-3
warmup_iters = 10
