# shellcheck shell=bash
# bash completion for uwtctl(8).
_uwtctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} words=
    case "${COMP_WORDS[*]:1:COMP_CWORD-1}" in
        '') words='status wrappers config firewall --help --version' ;;
        wrappers) words='list add remove enable disable apply' ;;
        config) words='show check migrate' ;;
        firewall) words='render check apply status test lockdown off zone' ;;
        'firewall apply') words='--confirm' ;;
        'wrappers list' | 'config show' | 'firewall render' | 'firewall check' | 'firewall status' | 'firewall test') words='--json' ;;
        'wrappers add') words=$(compgen -c -- "$cur") ;;
        'wrappers remove' | 'wrappers enable' | 'wrappers disable')
            words=$(uwtctl wrappers list 2>/dev/null | sed -n '2,$s/^\([^ :]*\) .*/\1/p')
            ;;
        'config migrate'*) words=$(compgen -f -- "$cur") ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _uwtctl uwtctl
