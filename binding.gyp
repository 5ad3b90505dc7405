{
  'variables': {
    # node-gyp rebuild -- -Dsanitize=address (or thread, undefined): for hunting, never for a release.
    'sanitize%': '',
  },
  'targets': [
    {
      'target_name': 'uprobe',
      'sources': [
        'native/addon.cc',
        'native/apart.cc',
        'native/arguments.cc',
        'native/async.cc',
        'native/bpf.cc',
        'native/bpf_query.cc',
        'native/bpf_ring.cc',
        'native/chunk.cc',
        'native/closer.cc',
        'native/compat.cc',
        'native/counter_memory.cc',
        'native/counter_store.cc',
        'native/demo.cc',
        'native/doorbell.cc',
        'native/errors.cc',
        'native/large_mapping.cc',
        'native/lock.cc',
        'native/mapped_ring.cc',
        'native/perf_event.cc',
        'native/process.cc',
        'native/reader_thread.cc',
        'native/ring_reader.cc',
        'native/sideband.cc',
        'native/task_watch.cc',
        'native/thread.cc',
        'native/vma.cc',
      ],
      'include_dirs': ["<!(node -p \"require('node-addon-api').include_dir\")"],
      'defines': [
        'NAPI_VERSION=8',
        'NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS',
        'NODE_ADDON_API_DISABLE_DEPRECATED',
        # An environment that is being torn down cannot throw; that is no reason to abort the process.
        'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS',
        '_FILE_OFFSET_BITS=64',
      ],
      'cflags': ['-Wall', '-Wextra', '-fvisibility=hidden', '-fno-strict-aliasing'],
      'cflags_cc': ['-fno-rtti', '-fno-exceptions', '-fvisibility-inlines-hidden'],
      'ldflags': [
        # Two addons in one process must not share each other's copy of a library.
        '-Wl,--exclude-libs,ALL',
        '-Wl,--version-script=<(module_root_dir)/native/exports.map',
        # The closing thread may run on after the last environment has unloaded the addon.
        '-Wl,-z,nodelete',
        '-Wl,-z,relro,-z,now',
      ],
      'conditions': [
        ["sanitize!=''", {
          'cflags': ['-fsanitize=<(sanitize)', '-g', '-fno-omit-frame-pointer'],
          'ldflags': ['-fsanitize=<(sanitize)'],
        }],
      ],
    },
  ],
}
