from .raw_and_ema_hook import RawAndEMAHook

__all__ = ['RawAndEMAHook']
