// Command kube is every part of a Kubernetes cluster in one program.
//
// The parts share nearly all of their packages, so linking them together costs a third of the
// time and the disk that seven programs cost. The part is named either by the link that the
// program is started through (etcd -> kube) or by the first argument (kube etcd).
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// What Kubernetes' own main packages link in beside the commands.
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// run ends the process with the part's exit status; args starts with the part's name.
type run func(args []string)

func command(build func() *cobra.Command) run {
	return func(args []string) {
		// Flags and completion are read from os.Args in several of the parts.
		os.Args = args
		os.Exit(cli.Run(build()))
	}
}

func parts() map[string]run {
	return map[string]run{
		"etcd":                    etcdmain.Main,
		"kubectl":                 command(cmd.NewDefaultKubectlCommand),
		"kube-apiserver":          command(kubeapiserver.NewAPIServerCommand),
		"kube-controller-manager": command(kubecontrollermanager.NewControllerManagerCommand),
		"kube-proxy":              command(kubeproxy.NewProxyCommand),
		"kube-scheduler":          command(func() *cobra.Command { return kubescheduler.NewSchedulerCommand() }),
		"kubelet":                 command(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	}
}

func main() {
	known := parts()
	args := os.Args
	part, found := known[filepath.Base(args[0])]
	if !found && len(args) > 1 {
		args = args[1:]
		part, found = known[args[0]]
	}
	if !found {
		names := make([]string, 0, len(known))
		for name := range known {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: kube %s [ARGUMENT]...\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	part(args)
}
