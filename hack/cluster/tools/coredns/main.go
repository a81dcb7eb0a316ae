// Command coredns is CoreDNS with the four plugins that answer a local cluster's names.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
)

func main() {
	// The order in which a query passes the plugins; a directive that is missing here is refused in a Corefile.
	dnsserver.Directives = []string{"errors", "log", "cache", "kubernetes"}
	coremain.Run()
}
