"""Checkpoints as mmengine's Runner writes them, and files that abuse what these need."""

import functools
import http.server
import os
import pickle
import re
import shutil
import socket
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel, PretrainedInit
from mmengine.optim import OneCycleLR
from mmengine.runner import CheckpointLoader, Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from asl_mmdet.checkpoint import (
    TRUST,
    CheckpointError,
    check_classes,
    check_start,
    damage,
    fitting_weights,
    has_begun,
    load_all_weights,
    newest_intact,
    read_checkpoint,
)


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, *inputs, mode):
        return dict(loss=(torch.stack(inputs) @ self.weight - 1).square().mean())


def line_runner(tmp_path, optimizer='SGD', **kwargs):
    return Runner(
        model=Line(),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=[torch.tensor([1.0, 2.0])] * 4,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type=optimizer, lr=0.1)),
        custom_hooks=[dict(type='EMAHook')],
        default_scope='mmdet',
        experiment_name=tmp_path.name,
        **kwargs,
    )


def test_runners_checkpoint_is_read_without_unrestricted_unpickling(tmp_path, monkeypatch):
    runner = line_runner(
        tmp_path,
        optimizer='AdamW',
        param_scheduler=dict(type='MultiStepLR', milestones=[1]),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
    )
    runner.train()
    path = tmp_path / 'epoch_1.pth'
    assert b'HistoryBuffer' in path.read_bytes()
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(admitted)

    load = torch.load
    modes = []

    def spy(*args, **kwargs):
        modes.append(kwargs['weights_only'])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', spy)
    content = read_checkpoint(path)
    assert modes == [True]
    assert content['meta']['epoch'] == 1
    assert content['state_dict']['weight'].shape == (2,) and content['state_dict']['weight'].any()
    buffer = content['message_hub']['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    expected = MessageHub.get_current_instance().get_scalar('train/loss')
    assert buffer.mean() == expected.mean() and len(buffer.data[0]) == 2


class _Getattr:
    """Reaches code through the ``getattr`` that HistoryBuffer's pickles name."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(HistoryBuffer, '__init__'), (HistoryBuffer, '__subclasses__'), (torch.Tensor, 'mean'), (dict, 'pop')],
)
def test_getattr_reaches_nothing_but_the_statistics_of_history_buffers(tmp_path, owner, name):
    torch.save(dict(state_dict={}, log=_Getattr(owner, name)), tmp_path / 'crafted.pth')
    with pytest.raises(ValueError, match='crafted.pth.* cannot be read'):
        read_checkpoint(tmp_path / 'crafted.pth')


def test_statistics_of_history_buffers_are_reached(tmp_path):
    torch.save(dict(log=_Getattr(HistoryBuffer, 'mean')), tmp_path / 'log.pth')
    assert read_checkpoint(tmp_path / 'log.pth')['log'] is HistoryBuffer.mean


def test_runner_files_are_read_after_mmengine_has_loaded_one(tmp_path):
    path = tmp_path / 'history.pth'
    history = HistoryBuffer()
    history.update(2.5)
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), message_hub=dict(loss=history)), path)
    CheckpointLoader.load_checkpoint(str(path), map_location='cpu')
    assert read_checkpoint(path)['message_hub']['loss'].current() == 2.5


@pytest.mark.parametrize('name', ['page.pth', 'page.safetensors'])
def test_files_that_are_no_checkpoint_are_named(tmp_path, name):
    (tmp_path / name).write_text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(('content', 'kind'), [([torch.zeros(2)], 'list'), (torch.zeros(2), 'Tensor')])
@pytest.mark.parametrize('read', [read_checkpoint, lambda path: CheckpointLoader.load_checkpoint(str(path))])
def test_files_of_another_content_are_named(tmp_path, content, kind, read):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(
        CheckpointError, match=f"a.pth' holds a {kind} where a dict of tensors is expected. Give a file"
    ):
        read(tmp_path / 'a.pth')


def test_damaged_and_missing_files_are_named(tmp_path):
    torch.save(dict(weight=torch.zeros(1000)), tmp_path / 'cut.pth')
    content = (tmp_path / 'cut.pth').read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    (tmp_path / 'page.pth').write_text('<html>')
    with pytest.raises(ValueError, match=r'a web page .* If it was downloaded, .* torch says: Unsupported operand 60$'):
        read_checkpoint(tmp_path / 'page.pth')
    with pytest.raises(ValueError, match='cut.pth.* damaged'):
        read_checkpoint(tmp_path / 'cut.pth')
    (tmp_path / 'empty.pth').touch()
    with pytest.raises(ValueError, match='empty.pth'):
        read_checkpoint(tmp_path / 'empty.pth')
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        read_checkpoint(tmp_path / 'absent.pth')


def test_safetensors_names_its_package_where_it_is_absent(tmp_path, monkeypatch):
    (tmp_path / 'weights.safetensors').touch()
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        read_checkpoint(tmp_path / 'weights.safetensors')


# ------------------------------------------------------------------------- crafted files, wherever mmengine loads them


class Marker:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def crafted(path, marker, form):
    content = dict(state_dict=dict(weight=torch.ones(2)), meta=dict(epoch=0, iter=0), message_hub=Marker(marker))
    if form == 'raw pickle':
        path.write_bytes(pickle.dumps(dict(message_hub=Marker(marker))))
    elif form == 'legacy':
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content, path, pickle_protocol=int(form[-1]))
    return path


FORMS = ['protocol 2', 'protocol 4', 'protocol 5', 'legacy', 'raw pickle']


WAYS = dict(
    loader=lambda path, folder: CheckpointLoader.load_checkpoint(str(path), map_location='cpu'),
    load_from=lambda path, folder: line_runner(folder, load_from=str(path)).train(),
    resume=lambda path, folder: line_runner(folder, load_from=str(path), resume=True).train(),
    init_cfg=lambda path, folder: PretrainedInit(checkpoint=str(path))(Line()),
)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('way', WAYS)
def test_crafted_files_are_refused_by_name_and_run_nothing(tmp_path, way, form):
    path = crafted(tmp_path / 'crafted.pth', tmp_path / 'marker', form)
    with pytest.raises(CheckpointError, match=rf'crafted\.pth.* holds \w+\.mkdir, which is refused.*{TRUST}=1'):
        WAYS[way](path, tmp_path)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('form', FORMS[:-1])  # torch reads no raw pickle
def test_the_flag_admits_them(tmp_path, monkeypatch, form):
    monkeypatch.setenv(TRUST, '1')
    CheckpointLoader.load_checkpoint(str(crafted(tmp_path / 'crafted.pth', tmp_path / 'marker', form)))
    assert (tmp_path / 'marker').is_dir()


def test_the_flag_is_one_value(tmp_path, monkeypatch):
    monkeypatch.setenv(TRUST, '0')
    with pytest.raises(CheckpointError):
        read_checkpoint(crafted(tmp_path / 'crafted.pth', tmp_path / 'marker', 'protocol 2'))


def test_types_outside_the_list_are_named(tmp_path):
    torch.save(dict(state_dict={}, where=tmp_path), tmp_path / 'path.pth')
    with pytest.raises(CheckpointError, match=r'holds pathlib\.(_local\.)?PosixPath, which is refused'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'path.pth'))


def test_resume_runs_no_config_of_the_file(tmp_path):
    """Runner.resume reads meta['config'] as a config, which is Python."""
    line_runner(tmp_path / 'first').train()
    content = torch.load(tmp_path / 'first/epoch_1.pth', weights_only=False)
    content['meta']['config'] = f"import os\nos.mkdir('{tmp_path / 'marker'}')"
    torch.save(content, tmp_path / 'crafted.pth')
    line_runner(tmp_path / 'second', load_from=str(tmp_path / 'crafted.pth'), resume=True).train()
    assert not (tmp_path / 'marker').exists()


def answer_and_close(server, answer):
    with server.accept()[0] as connection:
        connection.recv(1 << 16)  # or closing resets it
        connection.sendall(answer)


def test_downloads_are_read_restricted_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    (tmp_path / 'served').mkdir()
    crafted(tmp_path / 'served/crafted.pth', tmp_path / 'marker', 'protocol 2')
    torch.save(dict(weight=torch.ones(2)), tmp_path / 'served/good.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / 'served'))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        with pytest.raises(CheckpointError, match='mkdir, which is refused'):
            CheckpointLoader.load_checkpoint(f'{url}/crafted.pth')
        assert CheckpointLoader.load_checkpoint(f'{url}/good.pth')['state_dict']['weight'].sum() == 2
        # Another file of the same name, and one whose name says which it is.
        (tmp_path / 'served/other').mkdir()
        torch.save(dict(weight=torch.zeros(2)), tmp_path / 'served/other/good.pth')
        assert CheckpointLoader.load_checkpoint(f'{url}/other/good.pth')['state_dict']['weight'].sum() == 0
        shutil.copy(tmp_path / 'served/good.pth', tmp_path / 'served/good-0123abcd.pth')
        CheckpointLoader.load_checkpoint(f'{url}/good-0123abcd.pth')
        with pytest.raises(CheckpointError, match=f"'{url}/none.pth' cannot be downloaded: HTTP Error 404"):
            CheckpointLoader.load_checkpoint(f'{url}/none.pth')
        server.shutdown()
    with pytest.raises(CheckpointError, match='cannot be downloaded: .* Download it elsewhere'):
        CheckpointLoader.load_checkpoint(f'{url}/gone.pth')
    with socket.create_server(('127.0.0.1', 0)) as rude:
        for answer in (b'', b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nbroken'):
            threading.Thread(target=answer_and_close, args=(rude, answer), daemon=True).start()
            with pytest.raises(CheckpointError, match='cannot be downloaded: .* Download it elsewhere'):
                CheckpointLoader.load_checkpoint(f'http://127.0.0.1:{rude.getsockname()[1]}/a.pth')
    kept = sorted(path.name for path in (tmp_path / 'home/hub/checkpoints').glob('good*'))
    assert len(kept) == 3 and 'good-0123abcd.pth' in kept
    assert CheckpointLoader.load_checkpoint(f'{url}/good.pth')['state_dict']['weight'].sum() == 2
    assert not (tmp_path / 'marker').exists()
    (tmp_path / 'file').touch()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
    with pytest.raises(CheckpointError, match="cannot be downloaded: .*file/hub/checkpoints'. Download it elsewhere"):
        CheckpointLoader.load_checkpoint(f'{url}/good.pth')


@pytest.mark.parametrize(
    ('content', 'has'),
    [(dict(model=dict(weight=torch.ones(2)), num_classes=80), 'model, num_classes'), ({}, 'nothing')],
)
def test_a_checkpoint_of_which_nothing_would_be_loaded(content, has):
    with pytest.raises(CheckpointError, match=rf"'a.pth' holds no tensor .*: it has {has} ..., the model 0.weight, "):
        fitting_weights(network(), content, 'a.pth')
    fitting_weights(network(), dict(state_dict={'module.0.bias': torch.zeros(2)}), 'a.pth')


def test_no_scheme_is_left_to_mmengines_loaders():
    modules = {prefix: loader.__module__ for prefix, loader in CheckpointLoader._schemes.items()}
    assert len(modules) >= 11 and set(modules.values()) == {'asl_mmdet.checkpoint'}


def test_names_of_published_weights_lead_to_their_files(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    torch.save(dict(weight=torch.ones(2)), path)
    for table, names in (
        ('get_torchvision_models', dict(net=str(path))),
        ('get_external_models', {'new/net': 'a.pth'}),
        ('get_deprecated_model_names', {'old/net': 'new/net'}),
        ('get_mmcls_models', dict(net=str(path))),
        ('_get_mmengine_home', str(tmp_path)),
    ):
        monkeypatch.setattr(f'mmengine.runner.checkpoint.{table}', lambda names=names: names)
    stored = SimpleNamespace(get=lambda name: path.read_bytes() if name == 's3://bucket/a.pth' else b'')
    monkeypatch.setattr('asl_mmdet.checkpoint.get_file_backend', lambda name, backend_args: stored)
    for name in ('torchvision://net', 'open-mmlab://new/net', 'openmmlab://old/net', 's3://bucket/a.pth'):
        assert CheckpointLoader.load_checkpoint(name)['state_dict']['weight'].sum() == 2, name
    torch.save(dict(state_dict={'backbone.weight': torch.ones(2), 'head.weight': torch.ones(2)}), path)
    assert CheckpointLoader.load_checkpoint('mmcls://net')['state_dict'].keys() == {'weight'}
    with pytest.raises(CheckpointError, match='pavi://a.pth.* are not read directly; download it and give its path'):
        CheckpointLoader.load_checkpoint('pavi://a.pth')


def test_the_weights_of_mmdets_configs_need_no_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision', None)
    asked = []
    monkeypatch.setattr('asl_mmdet.checkpoint.load_from_file', lambda place, device: asked.append(place))
    for depth in (18, 34, 50, 101):
        CheckpointLoader.load_checkpoint(f'torchvision://resnet{depth}')
        assert asked.pop().startswith(f'https://download.pytorch.org/models/resnet{depth}-')
    for name, where in (
        ('torchvision://resnet50.imagenet1k_v2', ' where torchvision is not installed'),
        ('open-mmlab://resnet5', ''),
        ('mmcls://resnet5', ''),
    ):
        message = rf"'{name}' is no name of published weights{where}( \(did you mean .*)?; give their path or address"
        with pytest.raises(CheckpointError, match=message):
            CheckpointLoader.load_checkpoint(name)


def test_safetensors_and_bare_tensors_are_loaded_by_the_runner(tmp_path):
    from safetensors.torch import save_file

    weights = dict(weight=torch.tensor([3.0, 4.0]))
    save_file(weights, tmp_path / 'a.safetensors')
    torch.save(weights, tmp_path / 'b.pth')
    for name in ('a.safetensors', 'b.pth'):
        runner = line_runner(tmp_path, load_from=str(tmp_path / name))
        runner.call_hook('before_run')
        runner.load_or_resume()
        assert runner.model.weight.tolist() == [3, 4]


@pytest.mark.parametrize('anneal', ['cos', 'linear'])
def test_mmengines_one_cycle_state_comes_back(tmp_path, anneal):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = OneCycleLR(optimizer, eta_max=0.1, total_steps=10, anneal_strategy=anneal)
    torch.save(scheduler.state_dict(), tmp_path / 'a.pth')
    state = read_checkpoint(tmp_path / 'a.pth')
    assert state['anneal_func'] is scheduler.anneal_func and state['anneal_func'](1, 0, 0.5) == 0.5


def test_the_owner_of_one_cycles_functions_gives_nothing_else(tmp_path):
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    torch.save(_Getattr(OneCycleParamScheduler, 'build_iter_from_epoch'), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='getattr.*build_iter_from_epoch.*which is refused'):
        read_checkpoint(tmp_path / 'a.pth')


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_all_weights_are_loaded_and_what_is_more_is_left():
    source, model = network(), network()
    source[1].running_mean.fill_(3)
    state = {f'module.{key}': value for key, value in source.state_dict().items()}
    for content in (dict(state_dict=state | {'module.head.weight': torch.ones(1)}), source.state_dict()):
        load_all_weights(model, content, 'a.pth')
        for key, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda state: state.pop('0.bias'),
            r'1 tensors are missing or of another shape, 0.bias among them: \(2,\) in the model, missing in the',
        ),
        (lambda state: state.pop('1.running_var'), '1 tensors .* 1.running_var'),
        (
            lambda state: state.update({'0.weight': torch.ones(3, 1, 1, 1)}),
            r'.*0.weight .*: \(2, 1, 1, 1\) in the model, \(3, 1, 1, 1\) in the',
        ),
        (lambda state: [state.pop(key) for key in [*state][1:]], '5 tensors'),
    ],
)
def test_a_weight_that_would_stay_random_is_named(change, message):
    state = network().state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=f"'a.pth' does not fit the model of the config: {message}"):
        load_all_weights(network(), dict(state_dict=state), 'a.pth')


def test_the_model_of_several_processes_is_compared_too(tmp_path):
    torch.save(dict(state_dict={'module.0.bias': torch.zeros(2)}), tmp_path / 'a.pth')
    model = DistributedDataParallel.__new__(DistributedDataParallel)  # without a group
    nn.Module.__init__(model)
    model.module = network()
    check_start(model, str(tmp_path / 'a.pth'), resume=False)
    with pytest.raises(CheckpointError, match='5 tensors are missing or of another shape, 0.weight among them'):
        check_start(model, str(tmp_path / 'a.pth'), resume=True)


def test_a_count_of_batches_is_no_weight():
    state = network().state_dict()
    del state['1.num_batches_tracked']
    load_all_weights(network(), state, 'a.pth')


def test_the_order_of_classes_is_that_of_the_data_set():
    def of(*classes):
        return dict(meta=dict(dataset_meta=dict(classes=classes)))

    for content in (dict(), of('cat', 'dog'), of('Katze', 'Hund'), of('cat')):
        check_classes(content, ['cat', 'dog'], 'a.pth')
    with pytest.raises(CheckpointError, match=r"'a.pth' .* class 1 is 'ox' there and 'dog' in the data set"):
        check_classes(of('cat', 'ox', 'dog'), ('cat', 'dog', 'ox'), 'a.pth')


# ------------------------------------------------------------------------------------------------------ where to go on


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of each of these iterations."""

    def save(**iterations):
        for name, iteration in iterations.items():
            torch.save(dict(meta=dict(iter=iteration), state_dict={}), tmp_path / f'{name}.pth')
        return tmp_path

    return save


def test_the_checkpoint_of_the_most_iterations_is_taken(saved):
    folder = saved(epoch_9=36, epoch_10=40, iter_38=38)
    for name in ('epoch_10.pth', 'iter_38.pth', 'epoch_9.pth'):
        assert newest_intact(folder, folder, ['epoch_*.pth', 'iter_*.pth']) == str(folder / name)
        (folder / name).unlink()
    assert newest_intact(folder, folder, ['epoch_*.pth', 'iter_*.pth']) is None


def test_what_the_marker_says(saved):
    folder = saved(epoch_1=4)
    marker = folder / 'last_checkpoint'
    for content, last in ((f'{folder}/epoch_1.pth\n', f'{folder}/epoch_1.pth'), ('s3://a/epoch_2.pth', None)):
        marker.write_text(content)
        assert newest_intact(folder, folder, ['epoch_*.pth']) == (last or content)
    (folder / 'epoch_1.pth').unlink()
    assert has_begun(folder)
    marker.write_text('')
    with pytest.raises(CheckpointError, match='cannot resume: .*last_checkpoint is empty'):
        newest_intact(folder, folder, ['epoch_*.pth'])
    marker.unlink()
    assert not has_begun(folder)


@pytest.mark.parametrize(
    ('part', 'place', 'bit', 'what'),
    [
        (b'PK\3\4', 30, 7, 'decode'),  # the name
        (b'PK\1\2', 8, 0, 'encrypted'),
        (b'PK\1\2', 10, 0, 'compression method'),
        (b'PK\1\2', 10, 3, 'decompressing'),
    ],
)
def test_a_bit_that_is_wrong_in_the_directory_is_damage(saved, part, place, bit, what):
    path = saved(epoch_1=4) / 'epoch_1.pth'
    content = bytearray(path.read_bytes())
    content[content.index(part) + place] ^= 1 << bit
    path.write_bytes(content)
    assert re.fullmatch(rf'is truncated or damaged \(.*{what}.*\)', damage(path))
