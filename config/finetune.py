# Go on training GPT-2 (124 million parameters) on the tweets: python train.py config/finetune.py
init_from = "gpt2"  # or gpt2-medium, gpt2-large, gpt2-xl, or a folder
block_size = 64
separate_tweets = True
dropout = 0.1
batch_size = 32
max_iters = 60
eval_interval = 10
log_interval = 1
learning_rate = 3e-5
min_lr = 3e-6
warmup_iters = 5
weight_decay = 0.1
beta2 = 0.95
