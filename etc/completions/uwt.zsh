#compdef uwt
_arguments -S \
    '(-a --address)'{-a,--address}'[where the SOCKS port of Tor is]:address:' \
    '(-P --port)'{-P,--port}'[its TCP port]:port:' \
    '(-u --user)'{-u,--user}'[a fixed SOCKS username]:user:' \
    '(-p --pass)'{-p,--pass}'[a fixed SOCKS password]:password:' \
    '(-i --isolate)'{-i,--isolate=-}'[what shares circuits]::scope:(pid tree app destination connection none)' \
    '--level[how the command is held]:level:(auto preload netns)' \
    '--dns[how names are resolved]:mode:(virtual resolve refuse)' \
    '--config[read this file last]:file:_files' \
    '(-d --debug)'{-d,--debug}'[log each connection]' \
    '(-q --quiet)'{-q,--quiet}'[log nothing]' \
    '--explain[say what would be done]' \
    '--shell[run your shell]' \
    '(-h --help)'{-h,--help}'[help]' \
    '(-V --version)'{-V,--version}'[version]' \
    '(-):command:_command_names -e' \
    '*::arguments:_normal'
