import jax, jax.numpy as jnp
def _logits(x,h,vocab):
    l=jnp.matmul(x,h.astype(x.dtype),preferred_element_type=jnp.float32)
    return jnp.where((jnp.arange(l.shape[-1])>=vocab)[None],-1e30,l)
def cross_entropy(x_ND,head_DV,targets_N,*,vocab_size,chunk=1024,ignore_index=-1):
    l=_logits(x_ND,head_DV,vocab_size)
    m=targets_N!=ignore_index
    nll=jax.nn.logsumexp(l,-1)-jnp.take_along_axis(l,jnp.where(m,targets_N,0)[:,None],-1)[:,0]
    return jnp.where(m,nll,0).sum(), m.sum()
def token_nll(x_ND,head_DV,targets_N,*,vocab_size,chunk=1024,ignore_index=-1):
    l=_logits(x_ND,head_DV,vocab_size)
    m=targets_N!=ignore_index
    nll=jax.nn.logsumexp(l,-1)-jnp.take_along_axis(l,jnp.where(m,targets_N,0)[:,None],-1)[:,0]
    return jnp.where(m,nll,0)
