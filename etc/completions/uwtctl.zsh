#compdef uwtctl
local -a first
first=('status:whether commands can be carried here' 'wrappers:commands that go through Tor as typed' 'config:the configuration' 'firewall:the host'\''s firewall')
case $CURRENT in
    2) _describe command first ;;
    3)
        case $words[2] in
            wrappers) compadd list add remove enable disable apply ;;
            config) compadd show check migrate ;;
            firewall) compadd render check apply status test lockdown off zone ;;
        esac
        ;;
    *)
        case "$words[2] $words[3]" in
            'wrappers list' | 'config show' | 'firewall '(render|check|status|test)) compadd -- --json ;;
            'firewall apply') compadd -- --confirm ;;
            'wrappers add') _command_names -e ;;
            'wrappers '*) compadd -- ${${(f)"$(uwtctl wrappers list 2>/dev/null)"}[2,-1]%% *} ;;
            'config migrate') _files ;;
        esac
        ;;
esac
